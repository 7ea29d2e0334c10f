//! The built-in desktop: a clock, a box that moves, and marks of whatever a viewer types, clicks or pastes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt as _;
use tokio::time::{MissedTickBehavior, interval};

use super::super::event::Closed;
use super::super::stream::Stream;
use super::message::{Message, PixelFormat, Rect, keysym};
use super::paint::{self, FULL, HEIGHT, Picture, Scene, WIDTH};

/// Between two pictures.
const FRAME: Duration = Duration::from_millis(100);
/// Keys remembered, and lines of typed text shown.
const MAX_KEYS: usize = 4096;
const MAX_LINES: usize = 12;
const MAX_COLUMNS: usize = 46;
const BACKSPACE: u32 = 0xff08;
const RETURN: u32 = 0xff0d;

/// A desktop; clones are the same one.
#[derive(Clone)]
pub struct Desktop {
    state: Arc<Mutex<State>>,
    /// `None` stands still.
    started: Option<Instant>,
}

struct State {
    name: String,
    typed: String,
    keys: Vec<u32>,
    pointer: Option<(u16, u16, u8)>,
    clipboard: Vec<u8>,
    /// What was copied on the machine, and how often something was.
    copied: (u64, Vec<u8>),
}

impl Desktop {
    /// A desktop that moves.
    pub fn new() -> Self {
        Self { started: Some(Instant::now()), ..Self::still() }
    }

    /// One whose clock stands: two viewers see exactly the same pixels.
    pub fn still() -> Self {
        let name = "mksgate simulator".to_owned();
        let state = State {
            name,
            typed: String::new(),
            keys: Vec::new(),
            pointer: None,
            clipboard: Vec::new(),
            copied: (0, Vec::new()),
        };
        Self { state: Arc::new(Mutex::new(state)), started: None }
    }

    /// Names it: in ServerInit and on the screen.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        name.clone_into(&mut self.state().name);
        self
    }

    /// Keysyms pressed so far, oldest first.
    pub fn keys(&self) -> Vec<u32> {
        self.state().keys.clone()
    }

    /// Where the pointer was seen last, and its buttons.
    pub fn pointer(&self) -> Option<(u16, u16, u8)> {
        self.state().pointer
    }

    /// What was pasted last.
    pub fn clipboard(&self) -> Vec<u8> {
        self.state().clipboard.clone()
    }

    /// Copies a text (Latin-1) on the machine: every viewer is told.
    pub fn copy(&self, text: &[u8]) {
        let copied = &mut self.state().copied;
        *copied = (copied.0 + 1, text.to_vec());
    }

    /// Colour (`0x00RRGGBB`) of the square from (8, 8) to (23, 23) after this key was pressed.
    pub fn key_colour(keysym: u32) -> u32 {
        paint::key_colour(keysym)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn picture(&self) -> Picture {
        let state = self.state();
        Picture::draw(&Scene {
            name: &state.name,
            typed: &state.typed,
            last_key: state.keys.last().copied(),
            pointer: state.pointer,
            age: self.started.map_or(Duration::ZERO, |started| started.elapsed()),
        })
    }

    /// RFC 6143, 7.3.2.
    fn server_init(&self) -> Vec<u8> {
        let state = self.state();
        let mut init = Vec::new();
        init.extend((WIDTH as u16).to_be_bytes());
        init.extend((HEIGHT as u16).to_be_bytes());
        init.extend(PixelFormat::RGB32.encode());
        init.extend((state.name.len() as u32).to_be_bytes());
        init.extend(state.name.as_bytes());
        init
    }

    pub(super) async fn serve(&self, stream: &mut Stream) -> Result<(), Closed> {
        stream.send(&self.server_init()).await?;
        let mut viewer = Viewer::new(self.clone());
        let mut clock = interval(FRAME);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut inbox = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            tokio::select! {
                read = stream.read(&mut chunk) => match read? {
                    0 => return Err(Closed::Client),
                    n => {
                        inbox.extend(&chunk[..n]);
                        viewer.take(&mut inbox).map_err(Closed::Error)?;
                    }
                },
                _ = clock.tick(), if viewer.asked.is_some() => {}
            }
            if let Some(text) = viewer.cut_text() {
                stream.send(&text).await?;
            }
            if let Some(update) = viewer.update() {
                stream.send(&update).await?;
            }
        }
    }

    fn press(&self, keysym: u32) {
        let mut state = self.state();
        if state.keys.len() < MAX_KEYS {
            state.keys.push(keysym);
        }
        match keysym {
            BACKSPACE => {
                state.typed.pop();
            }
            RETURN => state.typed.push('\n'),
            0x20..=0x7e => state.typed.extend(char::from_u32(keysym)),
            _ => return,
        }
        let lines: Vec<&str> = state.typed.split('\n').collect();
        if lines.last().is_some_and(|line| line.len() == MAX_COLUMNS) {
            state.typed.push('\n');
        } else if lines.len() > MAX_LINES {
            state.typed = lines[1..].join("\n");
        }
    }
}

impl Default for Desktop {
    fn default() -> Self {
        Self::new()
    }
}

/// One viewer: what it has seen and what it asked for.
struct Viewer {
    desktop: Desktop,
    format: PixelFormat,
    seen: Option<Picture>,
    asked: Option<(bool, Rect)>,
    /// Copies it was told of.
    copies: u64,
}

impl Viewer {
    fn new(desktop: Desktop) -> Self {
        let copies = desktop.state().copied.0;
        Self { desktop, format: PixelFormat::RGB32, seen: None, asked: None, copies }
    }

    /// ServerCutText (RFC 6143, 7.6.4), if something was copied since.
    fn cut_text(&mut self) -> Option<Vec<u8>> {
        let state = self.desktop.state();
        let (copies, text) = &state.copied;
        if *copies == self.copies {
            return None;
        }
        self.copies = *copies;
        let mut message = vec![3, 0, 0, 0];
        message.extend((text.len() as u32).to_be_bytes());
        message.extend(text);
        Some(message)
    }

    /// Takes every whole message out of `inbox`.
    fn take(&mut self, inbox: &mut Vec<u8>) -> Result<(), String> {
        while let Some((message, length)) = Message::parse(inbox)? {
            inbox.drain(..length);
            self.handle(message);
        }
        Ok(())
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::SetPixelFormat(format) => {
                self.format = format;
                self.seen = None;
            }
            Message::UpdateRequest { incremental, area } => {
                // A full request that is not answered yet is not weakened by a later incremental one.
                let whole = self.asked.is_some_and(|(incremental, _)| !incremental);
                self.asked = Some((incremental && !whole, area));
            }
            Message::Key { down: true, keysym } => self.desktop.press(keysym),
            Message::VmwareKey { down: true, scan_code } => self.desktop.press(keysym(scan_code)),
            Message::Pointer { buttons, x, y } => self.desktop.state().pointer = Some((x, y, buttons)),
            Message::CutText(text) => self.desktop.state().clipboard = text,
            // Raw needs no announcement, and everyone takes it.
            Message::SetEncodings(_)
            | Message::Key { down: false, .. }
            | Message::VmwareKey { down: false, .. }
            | Message::Vmware => {}
        }
    }

    /// A FramebufferUpdate, if one was asked for and there is something to say.
    fn update(&mut self) -> Option<Vec<u8>> {
        let (incremental, area) = self.asked?;
        let picture = self.desktop.picture();
        let rects = match &self.seen {
            Some(seen) if incremental => picture.changes(seen, area),
            _ => paint::intersect(FULL, area).into_iter().collect(),
        };
        if incremental && rects.is_empty() {
            return None;
        }
        let mut update = vec![0, 0];
        update.extend((rects.len() as u16).to_be_bytes());
        for rect in rects {
            self.encode(&picture, rect, &mut update);
        }
        self.seen = Some(self.merge(picture, area));
        self.asked = None;
        Some(update)
    }

    fn encode(&self, picture: &Picture, rect: Rect, out: &mut Vec<u8>) {
        for field in [rect.x, rect.y, rect.w, rect.h] {
            out.extend(field.to_be_bytes());
        }
        out.extend(0_i32.to_be_bytes());
        for y in rect.y..rect.y + rect.h {
            let start = usize::from(y) * WIDTH + usize::from(rect.x);
            for pixel in &picture.pixels[start..start + usize::from(rect.w)] {
                self.format.push(*pixel, out);
            }
        }
    }

    /// What the viewer knows now: the new picture where it asked for it, what it had elsewhere.
    fn merge(&mut self, picture: Picture, area: Rect) -> Picture {
        match (self.seen.take(), paint::intersect(FULL, area)) {
            (Some(mut seen), Some(area)) if area != FULL => {
                for y in area.y..area.y + area.h {
                    let start = usize::from(y) * WIDTH + usize::from(area.x);
                    let span = start..start + usize::from(area.w);
                    seen.pixels[span.clone()].copy_from_slice(&picture.pixels[span]);
                }
                seen
            }
            _ => picture,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Message = Message::UpdateRequest { incremental: false, area: FULL };
    const NEW: Message = Message::UpdateRequest { incremental: true, area: FULL };

    #[test]
    fn an_incremental_request_waits_for_something_new() {
        let desktop = Desktop::still();
        let mut viewer = Viewer::new(desktop.clone());
        viewer.handle(ALL);
        assert_eq!(viewer.update().unwrap().len(), 4 + 12 + 4 * WIDTH * HEIGHT);
        assert!(viewer.update().is_none(), "nobody asked");
        viewer.handle(NEW);
        assert!(viewer.update().is_none(), "nothing moved");
        desktop.press(u32::from(b'x'));
        let update = viewer.update().unwrap();
        assert!(update.len() < 4 * WIDTH * HEIGHT / 10, "{} bytes for one key", update.len());
    }

    #[test]
    fn keys_are_remembered_and_typed_text_scrolls() {
        let desktop = Desktop::still();
        for key in [u32::from(b'a'), u32::from(b'b'), BACKSPACE, 0xffe1] {
            desktop.press(key);
        }
        assert_eq!(desktop.state().typed, "a");
        assert_eq!(desktop.keys(), [0x61, 0x62, BACKSPACE, 0xffe1]);
        for _ in 0..10_000 {
            desktop.press(u32::from(b'z'));
        }
        assert!(desktop.state().typed.len() <= (MAX_LINES + 1) * (MAX_COLUMNS + 1));
        assert_eq!(desktop.keys().len(), MAX_KEYS);
    }
}
