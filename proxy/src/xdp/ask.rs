//! Questions to a keeper, from the proxy's side.

use std::{io, os::unix::net::UnixStream, path::Path, time::Duration};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    GateError, GateStatus,
    counters::CounterReport,
    message::{Answer, Question, receive, send},
};

/// How long it may take to say what it has.
const LOOK: Duration = Duration::from_secs(2);

/// Where the gate is and what it has counted; `None`: it has none.
pub type Seen = Option<Box<(GateStatus, CounterReport)>>;

/// Asks a keeper what it has.
///
/// # Errors
/// It does not answer, or refuses.
pub fn look_at(socket: &Path) -> Result<Seen, GateError> {
    match once(socket, &Question::Look)? {
        Answer::Seen(seen) => Ok(seen),
        _ => Err(GateError::Kept("another answer than was asked for".into())),
    }
}

/// Asks on a connection of its own, which is in charge of nothing.
pub(super) fn once(socket: &Path, question: &Question) -> Result<Answer, GateError> {
    let asked = connect(socket, LOOK).and_then(|stream| ask(&stream, question));
    match asked.map_err(|error| silent(socket, error))? {
        Answer::Refused { why, no_interface } => Err(refusal(why, no_interface)),
        answer => Ok(answer),
    }
}

/// A connection on which nobody waits for longer than this.
pub(super) fn connect(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // The second is that of connect(2), too: a keeper that stands still accepts nobody.
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// No answer.
pub(super) fn silent(socket: &Path, error: io::Error) -> GateError {
    GateError::Keeper { socket: socket.to_owned(), error }
}

/// Its refusal.
pub(super) fn refusal(why: String, no_interface: bool) -> GateError {
    if no_interface { GateError::NoInterface } else { GateError::Kept(why) }
}

/// A question and its answer. Who refuses before it has read everything is heard all the same.
pub(super) fn ask(stream: &UnixStream, question: &Question) -> io::Result<Answer> {
    let sent = send(stream, question);
    match receive(stream) {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => sent.and(Err(io::ErrorKind::UnexpectedEof.into())),
        Err(error) => sent.and(Err(error)),
    }
}
