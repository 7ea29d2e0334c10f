//! The way to the gate: directly, or through an HTTP proxy (CONNECT, RFC 9110 9.3.6) as the environment says.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpStream;
use zeroize::Zeroizing;

use super::ConnectError;
use super::url::host_and_port;
use crate::wire::Wire;

/// Longest head of a proxy's or a gate's answer, in bytes.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// An HTTP proxy.
#[derive(Clone)]
pub struct HttpProxy {
    host: String,
    port: u16,
    /// `user:password`, decoded. Secret.
    credentials: Option<Zeroizing<String>>,
}

impl HttpProxy {
    /// Reads `[http://][USER:PASSWORD@]HOST[:PORT]`; the port is 3128 where absent.
    pub fn parse(text: &str) -> Result<Self, ConnectError> {
        let bad = |why| ConnectError::ProxyUrl { why };
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err(bad("a proxy behind TLS (https://) is not supported")),
            Some(_) => return Err(bad("only http:// proxies are supported")),
            None => text,
        };
        let rest = rest.split_once('/').map_or(rest, |(rest, _)| rest);
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, rest),
        };
        let (host, port) = host_and_port(address).map_err(|_| bad("its host or port is malformed"))?;
        let decoded = |text| super::url::decode(text).map(Zeroizing::new);
        let credentials = credentials.map(decoded).transpose();
        let credentials = credentials.map_err(|_| bad("its user or password is malformed"))?;
        Ok(Self { host, port: port.unwrap_or(3128), credentials })
    }

    /// Which proxy leads to `host`, by the variables `HTTPS_PROXY`, `https_proxy`, `NO_PROXY`, `no_proxy`. The lower-case name
    /// wins, as in curl.
    pub fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
        host: &str,
        port: u16,
    ) -> Result<Option<Self>, ConnectError> {
        let either = |lower: &str, upper: &str| variable(lower).or_else(|| variable(upper));
        let proxy = either("https_proxy", "HTTPS_PROXY").filter(|text| !text.trim().is_empty());
        let exempt = either("no_proxy", "NO_PROXY").unwrap_or_default();
        match proxy {
            Some(text) if !is_exempt(&exempt, host, port) => Self::parse(text.trim()).map(Some),
            _ => Ok(None),
        }
    }

    /// Opens a tunnel to `host:port`. Also gives the bytes that came behind the proxy's answer.
    pub(super) async fn tunnel(&self, host: &str, port: u16) -> Result<(Wire, Vec<u8>), ConnectError> {
        let mut wire = Wire::from_tokio(dial(&self.host, self.port).await?)?;
        wire.write_all(self.request(host, port).into_bytes()).await?;
        let mut head = Vec::new();
        loop {
            if wire.read_into(&mut head, 4096).await? == 0 {
                return Err(ConnectError::Closed("the HTTP proxy"));
            }
            match status_of(&head) {
                Ok(Some((status, len))) if (200..300).contains(&status) => {
                    head.drain(..len);
                    return Ok((wire, head));
                }
                Ok(Some((status, _))) => return Err(ConnectError::ProxyRefused { status }),
                Ok(None) if head.len() <= MAX_HEAD => {}
                Ok(None) | Err(()) => return Err(ConnectError::NotHttp("the HTTP proxy")),
            }
        }
    }

    fn request(&self, host: &str, port: u16) -> String {
        let authority = authority(host, port);
        let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
        if let Some(credentials) = &self.credentials {
            let encoded = Zeroizing::new(STANDARD.encode(credentials.as_bytes()));
            request.push_str(&format!("Proxy-Authorization: Basic {}\r\n", encoded.as_str()));
        }
        request.push_str("\r\n");
        request
    }
}

impl std::fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HttpProxy({})", authority(&self.host, self.port))
    }
}

impl std::fmt::Display for HttpProxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

/// A TCP connection to a name or address, kept alive and without delay.
pub(super) async fn dial(host: &str, port: u16) -> Result<TcpStream, ConnectError> {
    let to = authority(host, port);
    let stream = TcpStream::connect((host, port)).await.map_err(|error| ConnectError::Tcp { to, error })?;
    let keep_alive = socket2::TcpKeepalive::new()
        .with_time(std::time::Duration::from_secs(30))
        .with_interval(std::time::Duration::from_secs(10));
    socket2::SockRef::from(&stream).set_tcp_keepalive(&keep_alive)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// `HOST:PORT` as it stands in a Host header.
pub(super) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Status and length of a complete response head; `None` while it is incomplete.
pub(super) fn status_of(head: &[u8]) -> Result<Option<(u16, usize)>, ()> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(head) {
        Ok(httparse::Status::Complete(len)) => Ok(response.code.map(|code| (code, len))),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(()),
    }
}

/// Whether NO_PROXY names the host: `*`, a name and all below it (with or without a leading dot), an address, a network in
/// CIDR form; each may have a port.
fn is_exempt(list: &str, host: &str, port: u16) -> bool {
    let address = host.parse::<IpAddr>().ok();
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let Some(inside) = address.and_then(|address| in_network(entry, address)) {
            return inside;
        }
        let Ok((name, own_port)) = host_and_port(entry.trim_start_matches("*.").trim_start_matches('.'))
        else {
            return false;
        };
        if own_port.is_some_and(|own| own != port) {
            return false;
        }
        if let Some(address) = address {
            return name.parse::<IpAddr>().is_ok_and(|own| own == address);
        }
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        host == name || host.strip_suffix(&name).is_some_and(|front| front.ends_with('.'))
    })
}

/// Whether `address` lies in the network; `None` if the entry is none.
fn in_network(entry: &str, address: IpAddr) -> Option<bool> {
    let (network, bits) = entry.split_once('/')?;
    let (network, bits) = (network.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()) << 96, 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let ((network, width), (address, own)) = (number(network), number(address));
    let shift = 128u32.checked_sub(bits)?;
    Some(width == own && bits <= width && (network ^ address).checked_shr(shift).unwrap_or(0) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(vars: &[(&str, &str)], host: &str, port: u16) -> Option<String> {
        let variable = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        HttpProxy::from_environment(variable, host, port).unwrap().map(|proxy| proxy.to_string())
    }

    #[test]
    fn the_environment_chooses() {
        let both = [("HTTPS_PROXY", "http://upper:1"), ("https_proxy", "http://lower:2")];
        assert_eq!(chosen(&both, "h", 443).as_deref(), Some("lower:2"));
        assert_eq!(chosen(&both[..1], "h", 443).as_deref(), Some("upper:1"));
        assert_eq!(chosen(&[], "h", 443), None);
        assert_eq!(chosen(&[("https_proxy", "")], "h", 443), None);
        assert_eq!(chosen(&[("http_proxy", "http://x:1")], "h", 443), None);
        assert_eq!(
            chosen(&[("HTTPS_PROXY", "proxy.example")], "h", 443).as_deref(),
            Some("proxy.example:3128")
        );
    }

    #[test]
    fn no_proxy_exempts() {
        for (list, host, exempt) in [
            ("*", "any.example", true),
            ("example.com", "example.com", true),
            ("example.com", "a.Example.com.", true),
            (".example.com", "a.example.com", true),
            ("*.example.com", "a.example.com", true),
            ("example.com", "badexample.com", false),
            ("a.example.com", "example.com", false),
            ("x, localhost ,y", "localhost", true),
            ("example.com:443", "example.com", true),
            ("example.com:902", "example.com", false),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("0.0.0.0/0", "11.1.2.3", true),
            ("0.0.0.0/0", "::1", false),
            ("2001:db8::/32", "2001:db8::5", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/200", "10.0.0.0", false),
            ("127.0.0.1", "127.0.0.1", true),
            ("7.0.0.1", "127.7.0.1", false),
            ("::1", "::1", true),
            ("", "h", false),
        ] {
            assert_eq!(is_exempt(list, host, 443), exempt, "{list:?} {host}");
        }
    }

    #[test]
    fn its_request_carries_the_credentials_and_nothing_prints_them() {
        let proxy = HttpProxy::parse("http://us%40er:p%3Aw@proxy.example:8080/").unwrap();
        assert_eq!(
            proxy.request("2001:db8::1", 443),
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nProxy-Authorization: Basic dXNAZXI6cDp3\r\n\r\n"
        );
        assert_eq!(format!("{proxy:?} {proxy}"), "HttpProxy(proxy.example:8080) proxy.example:8080");
        for bad in ["https://p:1", "socks5://p:1", "http://", "http://p:x", "http://a%0d:b@p:1"] {
            assert!(matches!(HttpProxy::parse(bad), Err(ConnectError::ProxyUrl { .. })), "{bad}");
        }
    }
}
