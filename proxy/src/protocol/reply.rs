//! Responses of the request-and-answer doors: `/sdk`, `/api`, `/v1`.

/// A whole response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Code and reason phrase.
    pub status: &'static str,
    /// Media type; none where there is no body.
    pub kind: Option<String>,
    /// Further fields.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// A response with a body of this type.
    pub fn new(status: &'static str, kind: &str, body: String) -> Self {
        Self { status, kind: Some(kind.into()), headers: Vec::new(), body }
    }

    /// A response without a body.
    pub fn empty(status: &'static str) -> Self {
        Self { status, kind: None, headers: Vec::new(), body: String::new() }
    }

    /// With a field more. Values are made here, never taken from a request as they came.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// As it is sent; `last`: the connection closes behind it.
    pub fn encode(&self, last: bool) -> Vec<u8> {
        let mut text = format!("HTTP/1.1 {}\r\n", self.status);
        if let Some(kind) = &self.kind {
            text.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        for (name, value) in &self.headers {
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if last {
            text.push_str("Connection: close\r\n");
        }
        text.push_str(&format!("Content-Length: {}\r\nCache-Control: no-store\r\n\r\n", self.body.len()));
        text.push_str(&self.body);
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_can_break_out_of_its_field() {
        let reply = Reply::empty("200 OK").header("X-A", "b\r\nSet-Cookie: c");
        let text = String::from_utf8(reply.encode(true)).unwrap();
        assert_eq!(
            text,
            "HTTP/1.1 200 OK\r\nX-A: bSet-Cookie: c\r\nConnection: close\r\nContent-Length: 0\r\nCache-Control: no-store\r\n\r\n"
        );
    }
}
