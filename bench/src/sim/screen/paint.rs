//! Draws the desktop, and finds what changed between two pictures.

use std::time::Duration;

use super::font;
use super::message::Rect;

pub(super) const WIDTH: usize = 640;
pub(super) const HEIGHT: usize = 400;
/// Edge of the squares in which changes are looked for.
const TILE: usize = 40;
/// Edge of the moving box.
const BOX: usize = 48;
/// Screen pixels per font pixel.
const SCALE: usize = 3;
const CELL: usize = (font::WIDTH + 1) * SCALE;
const LINE: usize = (font::HEIGHT + 2) * SCALE;
const PAPER: u32 = 0x001e_2a38;
const INK: u32 = 0x00e8_e8e8;
/// What the box moves in a second, in pixels.
const SPEED: f64 = 120.0;

/// What is to be drawn.
pub(super) struct Scene<'a> {
    pub(super) name: &'a str,
    pub(super) typed: &'a str,
    /// Keysym pressed last.
    pub(super) last_key: Option<u32>,
    pub(super) pointer: Option<(u16, u16, u8)>,
    /// Age of the desktop: the clock and the box follow it.
    pub(super) age: Duration,
}

/// A picture of `WIDTH` by `HEIGHT` pixels, `0x00RRGGBB`.
pub(super) struct Picture {
    pub(super) pixels: Vec<u32>,
}

impl Picture {
    pub(super) fn draw(scene: &Scene<'_>) -> Self {
        let mut picture = Self { pixels: vec![PAPER; WIDTH * HEIGHT] };
        picture.text(40, 12, scene.name);
        let tenths = scene.age.as_millis() / 100;
        let clock = format!("{:02}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10);
        picture.text(WIDTH - 8 * CELL, 12, &clock);
        for (n, line) in scene.typed.split('\n').enumerate() {
            picture.text(40, 60 + n * LINE, line);
        }
        let travelled = scene.age.as_secs_f64() * SPEED;
        let (x, y) = (bounce(travelled, WIDTH - BOX), bounce(travelled * 0.7, HEIGHT - BOX));
        picture.fill(x, y, BOX, BOX, 0x00ff_8c1a);
        if let Some((x, y, buttons)) = scene.pointer {
            let colour = if buttons == 0 { INK } else { 0x0033_cc66 };
            picture.fill(usize::from(x).saturating_sub(3), usize::from(y).saturating_sub(3), 7, 7, colour);
        }
        if let Some(keysym) = scene.last_key {
            picture.fill(8, 8, 16, 16, key_colour(keysym));
        }
        picture
    }

    fn fill(&mut self, x: usize, y: usize, w: usize, h: usize, colour: u32) {
        for row in y.min(HEIGHT)..(y + h).min(HEIGHT) {
            let start = row * WIDTH;
            self.pixels[start + x.min(WIDTH)..start + (x + w).min(WIDTH)].fill(colour);
        }
    }

    fn text(&mut self, x: usize, y: usize, text: &str) {
        for (n, c) in text.chars().enumerate() {
            for (dx, dy) in (0..font::HEIGHT).flat_map(|dy| (0..font::WIDTH).map(move |dx| (dx, dy))) {
                if font::pixel(c, dx, dy) {
                    self.fill(x + n * CELL + dx * SCALE, y + dy * SCALE, SCALE, SCALE, INK);
                }
            }
        }
    }

    /// The squares inside `area` in which the two pictures differ.
    pub(super) fn changes(&self, before: &Self, area: Rect) -> Vec<Rect> {
        let mut changed = Vec::new();
        for y in (0..HEIGHT).step_by(TILE) {
            for x in (0..WIDTH).step_by(TILE) {
                let same = (y..y + TILE).all(|row| {
                    let span = row * WIDTH + x..row * WIDTH + x + TILE;
                    self.pixels[span.clone()] == before.pixels[span]
                });
                let tile = Rect { x: x as u16, y: y as u16, w: TILE as u16, h: TILE as u16 };
                if !same {
                    changed.extend(intersect(tile, area));
                }
            }
        }
        changed
    }
}

/// Colour of the square at (8, 8) after a key was pressed: the keysym itself, so that a test can read it off the screen.
pub(super) fn key_colour(keysym: u32) -> u32 {
    keysym & 0x00ff_ffff
}

pub(super) const FULL: Rect = Rect { x: 0, y: 0, w: WIDTH as u16, h: HEIGHT as u16 };

/// The part of `a` inside `b`, if there is one.
pub(super) fn intersect(a: Rect, b: Rect) -> Option<Rect> {
    let x = a.x.max(b.x);
    let y = a.y.max(b.y);
    let right = a.x.saturating_add(a.w).min(b.x.saturating_add(b.w));
    let bottom = a.y.saturating_add(a.h).min(b.y.saturating_add(b.h));
    (right > x && bottom > y).then(|| Rect { x, y, w: right - x, h: bottom - y })
}

/// Position of something that has travelled so far between 0 and `room`, turning at both ends.
fn bounce(travelled: f64, room: usize) -> usize {
    let lap = travelled as usize % (2 * room);
    if lap < room { lap } else { 2 * room - lap }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene(typed: &str, age: u64) -> Scene<'_> {
        Scene { name: "vm", typed, last_key: None, pointer: None, age: Duration::from_millis(age) }
    }

    #[test]
    fn time_and_keys_change_the_picture_and_nothing_else_does() {
        let start = Picture::draw(&scene("", 0));
        assert_eq!(Picture::draw(&scene("", 0)).changes(&start, FULL), []);
        assert!(!Picture::draw(&scene("", 500)).changes(&start, FULL).is_empty());
        let typed = Picture::draw(&scene("a", 0)).changes(&start, FULL);
        assert_eq!(typed, [Rect { x: 40, y: 40, w: 40, h: 40 }]);
        let corner = Rect { x: 70, y: 70, w: 100, h: 100 };
        let seen = Picture::draw(&scene("a", 0)).changes(&start, corner);
        assert_eq!(seen, [Rect { x: 70, y: 70, w: 10, h: 10 }]);
    }

    #[test]
    fn the_box_stays_on_the_screen_for_hours() {
        for second in 0..20_000 {
            assert!(bounce(f64::from(second) * SPEED, WIDTH - BOX) <= WIDTH - BOX);
        }
    }
}
