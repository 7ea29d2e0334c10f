//! The client's side: what the backend says to a hypervisor, and `mksgate connect` to a front door.

use thiserror::Error;

use super::code;

/// What the server announced in its first line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Banner {
    /// TLS starts right after this line.
    pub ssl_required: bool,
    /// It takes SHA-256 thumbprints.
    pub sha256: bool,
}

/// The first line is not authd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the first line is not an authd banner (`220 …`)")]
pub struct BannerError;

impl Banner {
    /// Reads the first line: `220 `, then tokens between commas with odd spaces and empty tokens.
    pub fn parse(line: &str) -> Result<Self, BannerError> {
        let rest = line.strip_prefix("220 ").ok_or(BannerError)?;
        let tokens = rest.split_once(": ").map_or(rest, |(_, tokens)| tokens);
        let mut banner = Self::default();
        for token in tokens.split(',').map(str::trim) {
            match token {
                "SSL Required" => banner.ssl_required = true,
                "SHA256 supported" => banner.sha256 = true,
                _ => {}
            }
        }
        Ok(banner)
    }
}

/// One line of the server: three digits and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// See [`code`].
    pub code: u16,
    /// What stands behind the code.
    pub text: String,
}

/// A line that is no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a line that is no authd reply (three digits and a text)")]
pub struct ReplyError;

impl Reply {
    /// Reads one line, given without its end.
    pub fn parse(line: &str) -> Result<Self, ReplyError> {
        let (digits, text) = line.split_at_checked(3).ok_or(ReplyError)?;
        if !digits.bytes().all(|b| b.is_ascii_digit()) || !(text.is_empty() || text.starts_with(' ')) {
            return Err(ReplyError);
        }
        Ok(Self { code: digits.parse().map_err(|_| ReplyError)?, text: text.trim().into() })
    }

    /// Whether it says what a step of the dialogue waits for.
    pub fn is(&self, code: u16) -> bool {
        self.code == code
    }

    /// Whether the server asks for a second pass on another port.
    pub fn is_second_pass(&self) -> bool {
        self.code == code::SECOND_PASS
    }
}

/// An argument that would break the line it stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an authd argument that is empty, too long, or holds a line end or a NUL")]
pub struct CommandError;

/// The client's lines, with their ends. Arguments with a line end or a NUL are refused, so nothing can be smuggled in.
pub mod commands {
    use super::CommandError;
    use crate::protocol::line::MAX_LINE;

    /// `USER <ticket>`.
    pub fn user(ticket: &str) -> Result<String, CommandError> {
        line("USER", ticket, "")
    }

    /// `PASS <ticket>`.
    pub fn pass(ticket: &str) -> Result<String, CommandError> {
        line("PASS", ticket, "")
    }

    /// `THUMBPRINT <nonce>`, or its SHA-256 form.
    pub fn thumbprint(nonce: &str, sha256: bool) -> Result<String, CommandError> {
        line(if sha256 { "THUMBPRINT_SHA2" } else { "THUMBPRINT" }, nonce, "")
    }

    /// `CONNECT <cfgFile> mks`; the file is not quoted, spaces and all.
    pub fn connect(cfg_file: &str) -> Result<String, CommandError> {
        line("CONNECT", cfg_file, " mks")
    }

    fn line(command: &str, argument: &str, tail: &str) -> Result<String, CommandError> {
        let line = format!("{command} {argument}{tail}\r\n");
        let bad = argument.is_empty() || argument.bytes().any(|b| matches!(b, 0 | b'\r' | b'\n'));
        if bad || line.len() > MAX_LINE { Err(CommandError) } else { Ok(line) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn real_banners() {
        let old = "220 VMware Authentication Daemon Version 1.10: SSL Required, ServerDaemonProtocol:SOAP, MKSDisplayProtocol:VNC , VMXARGS supported";
        assert_eq!(Banner::parse(old), Ok(Banner { ssl_required: true, sha256: false }));
        let new = format!("{old}, NFCSSL supported/t, SHA256 supported");
        assert_eq!(Banner::parse(&new), Ok(Banner { ssl_required: true, sha256: true }));
        let plain = "220 VMware Authentication Daemon Version 1.10, , ServerDaemonProtocol:SOAP, MKSDisplayProtocol:VNC";
        assert_eq!(Banner::parse(plain), Ok(Banner::default()));
        assert_eq!(Banner::parse("SSH-2.0-OpenSSH_9.2"), Err(BannerError));
        assert_eq!(
            Banner::parse(super::super::BANNER.trim_end()),
            Ok(Banner { ssl_required: true, sha256: true })
        );
    }

    #[test]
    fn replies() {
        assert_eq!(Reply::parse("200 Connect a b"), Ok(Reply { code: 200, text: "Connect a b".into() }));
        assert_eq!(Reply::parse("230"), Ok(Reply { code: 230, text: String::new() }));
        for bad in ["", "20", "abc", "2000 x", "+20 x", "20é"] {
            assert_eq!(Reply::parse(bad), Err(ReplyError), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_argument_makes_a_second_line(argument in "[\\PC\r\n\0]{0,30}") {
            for line in [commands::user(&argument), commands::connect(&argument), commands::thumbprint(&argument, true)].into_iter().flatten() {
                prop_assert_eq!(line.find('\n'), Some(line.len() - 1));
                prop_assert!(!line[..line.len() - 2].contains('\r'));
            }
        }

        #[test]
        fn any_line_parses_or_is_refused(line in "\\PC{0,40}") {
            let _ = Reply::parse(&line);
            let _ = Banner::parse(&line);
        }
    }
}
