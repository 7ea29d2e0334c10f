//! A vCenter that misbehaves on request: TLS, HTTP and SOAP by hand, a script per test, every call counted.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use mksgate::tls::Thumbprint;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::desk::secret;
use super::vcsim::{PASSWORD, USER};

/// One call as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub method: String,
    /// The type and the id of `_this`.
    pub object: String,
    /// The session's cookie.
    pub cookie: Option<String>,
    pub body: String,
}

/// What a call is answered with.
#[derive(Clone)]
pub enum Answer {
    /// As a vCenter would.
    Usual,
    /// What is inside the SOAP body, with status 200.
    Inside(String),
    /// A fault of this type, with status 500.
    Fault(&'static str),
    /// Status line, further fields, body.
    Http(&'static str, &'static str, String),
    /// This many zeros, announced, in pieces until the client has had enough.
    Huge(u64),
    /// Nothing, for as long as the test lasts.
    Hang,
    /// The connection closes without an answer.
    Drop,
}

type Script = dyn Fn(&Call) -> Answer + Send + Sync;

/// Where consoles are, as tickets say.
#[derive(Clone)]
pub struct Console {
    pub host: SocketAddr,
    pub thumbprint: String,
    pub path: String,
}

pub struct FakeVcenter {
    pub address: SocketAddr,
    scene: Arc<Scene>,
}

struct Scene {
    identity: Mutex<(Arc<ServerConfig>, String)>,
    script: Mutex<Arc<Script>>,
    console: Console,
    calls: Mutex<Vec<Call>>,
    came: Condvar,
    sessions: Mutex<HashMap<String, bool>>,
    spent: Mutex<HashSet<String>>,
    number: AtomicU64,
    busy: AtomicUsize,
    busiest: AtomicUsize,
    /// Bytes of huge answers that were taken.
    pub(super) huge: AtomicU64,
    ended: AtomicBool,
}

impl FakeVcenter {
    pub fn start(console: Console, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let scene = Arc::new(Scene {
            identity: Mutex::new(identity()),
            script: Mutex::new(Arc::new(script)),
            console,
            calls: Mutex::default(),
            came: Condvar::new(),
            sessions: Mutex::default(),
            spent: Mutex::default(),
            number: AtomicU64::new(0),
            busy: AtomicUsize::new(0),
            busiest: AtomicUsize::new(0),
            huge: AtomicU64::new(0),
            ended: AtomicBool::new(false),
        });
        let serving = scene.clone();
        thread::spawn(move || {
            for tcp in listener.incoming() {
                if serving.ended.load(Ordering::SeqCst) {
                    return;
                }
                let scene = serving.clone();
                // An error is the client's leaving.
                thread::spawn(move || scene.serve(tcp?));
            }
        });
        Self { address, scene }
    }

    /// Another script from the next call on.
    pub fn script(&self, script: impl Fn(&Call) -> Answer + Send + Sync + 'static) {
        *self.scene.script.lock().unwrap() = Arc::new(script);
    }

    /// Another certificate from the next connection on.
    pub fn renew_certificate(&self) {
        *self.scene.identity.lock().unwrap() = identity();
    }

    /// Every session is forgotten, as by a restart.
    pub fn forget_sessions(&self) {
        self.scene.sessions.lock().unwrap().clear();
    }

    /// SHA-256 of its certificate.
    pub fn thumbprint(&self) -> String {
        self.scene.identity.lock().unwrap().1.clone()
    }

    /// The calls since the last time.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.scene.calls.lock().unwrap())
    }

    /// Just the methods.
    pub fn methods(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.method).collect()
    }

    /// Waits until so many calls of a method have come, and leaves them to be read.
    pub fn wait_calls(&self, method: &str, count: usize) {
        let calls = self.scene.calls.lock().unwrap();
        let few = |calls: &mut Vec<Call>| calls.iter().filter(|call| call.method == method).count() < count;
        let (calls, timeout) =
            self.scene.came.wait_timeout_while(calls, crate::support::PATIENCE, few).unwrap();
        assert!(!timeout.timed_out(), "{count} {method} did not come: {calls:?}");
    }

    /// Most calls that were under way at once.
    pub fn busiest(&self) -> usize {
        self.scene.busiest.load(Ordering::SeqCst)
    }

    /// Bytes of huge answers that left.
    pub fn huge_sent(&self) -> u64 {
        self.scene.huge.load(Ordering::SeqCst)
    }

    /// `[vcenters.NAME]` for the configuration.
    pub fn account(&self, name: &str, dir: &Path) -> String {
        secret(&dir.join("fake.secret"), format!("{PASSWORD}\n"));
        format!(
            "[vcenters.{name}]\nhost = \"{}\"\nport = {}\nthumbprints = [\"{}\"]\nuser = \"{USER}\"\npassword_file = \"fake.secret\"",
            self.address.ip(),
            self.address.port(),
            self.thumbprint()
        )
    }
}

impl Drop for FakeVcenter {
    fn drop(&mut self) {
        self.scene.ended.store(true, Ordering::SeqCst);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
    }
}

fn identity() -> (Arc<ServerConfig>, String) {
    let made = rcgen::generate_simple_self_signed(vec!["vcenter.example".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let der = made.cert.der().clone();
    let print = Thumbprint::sha256(&der).to_string();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![der], key)
        .unwrap();
    (Arc::new(config), print)
}

type Tls = StreamOwned<ServerConnection, TcpStream>;

impl Scene {
    fn serve(&self, tcp: TcpStream) -> io::Result<()> {
        tcp.set_nodelay(true)?;
        let config = self.identity.lock().unwrap().0.clone();
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut reader = BufReader::new(StreamOwned::new(connection, tcp));
        while let Some(call) = read_call(&mut reader)? {
            self.calls.lock().unwrap().push(call.clone());
            self.came.notify_all();
            let busy = self.busy.fetch_add(1, Ordering::SeqCst) + 1;
            self.busiest.fetch_max(busy, Ordering::SeqCst);
            let script = self.script.lock().unwrap().clone();
            let answer = script(&call);
            let answered = self.answer(&call, answer, reader.get_mut());
            self.busy.fetch_sub(1, Ordering::SeqCst);
            if !answered? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether the connection goes on.
    fn answer(&self, call: &Call, answer: Answer, tls: &mut Tls) -> io::Result<bool> {
        match answer {
            Answer::Usual => match self.usual(call) {
                Ok((inside, cookie)) => respond(tls, "200 OK", &cookie, &envelope(&inside))?,
                Err(fault) => respond(tls, "500 Internal Server Error", "", &envelope(&fault_body(fault)))?,
            },
            Answer::Inside(inside) => respond(tls, "200 OK", "", &envelope(&inside))?,
            Answer::Fault(kind) => {
                respond(tls, "500 Internal Server Error", "", &envelope(&fault_body(kind)))?
            }
            Answer::Http(status, fields, body) => respond(tls, status, fields, &body)?,
            Answer::Huge(len) => {
                write!(tls, "HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: {len}\r\n\r\n")?;
                let piece = vec![b' '; 64 * 1024];
                let mut left = len;
                while left > 0 {
                    let n = tls.write(&piece[..piece.len().min(left as usize)])? as u64;
                    tls.flush()?;
                    self.huge.fetch_add(n, Ordering::SeqCst);
                    left -= n;
                }
            }
            Answer::Hang => {
                // Until the client gives up.
                let _ = tls.read(&mut [0; 1]);
                return Ok(false);
            }
            Answer::Drop => return Ok(false),
        }
        Ok(true)
    }

    fn usual(&self, call: &Call) -> Result<(String, String), &'static str> {
        let response = |inside: &str| {
            let method = &call.method;
            Ok((format!("<{method}Response xmlns=\"urn:vim25\">{inside}</{method}Response>"), String::new()))
        };
        let mut sessions = self.sessions.lock().unwrap();
        let known = call.cookie.as_ref().is_some_and(|cookie| sessions.get(cookie) == Some(&true));
        match call.method.as_str() {
            "RetrieveServiceContent" => response(SERVICE_CONTENT),
            "Login" | "CloneSession" => {
                let wrong = if call.method == "Login" {
                    let password = PASSWORD.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
                    !(call.body.contains(USER) && call.body.contains(&password))
                } else {
                    let ticket = between(&call.body, "<cloneTicket>", "</cloneTicket>").unwrap_or_default();
                    !ticket.starts_with("cst-VCT-") || !self.spent.lock().unwrap().insert(ticket.to_owned())
                };
                if wrong {
                    return Err("InvalidLogin");
                }
                let cookie = format!("session-{}", self.number.fetch_add(1, Ordering::SeqCst));
                sessions.insert(cookie.clone(), true);
                let (body, _) = response(SESSION)?;
                Ok((body, format!("Set-Cookie: vmware_soap_session=\"{cookie}\"; Path=/; HttpOnly\r\n")))
            }
            _ if !known => Err("NotAuthenticated"),
            "Logout" => {
                sessions.remove(call.cookie.as_deref().unwrap_or_default());
                response("")
            }
            "CurrentTime" => response("<returnval>2026-01-01T00:00:00Z</returnval>"),
            "AcquireTicket" => {
                let kind = between(&call.body, "<ticketType>", "</ticketType>").unwrap_or_default();
                let ticket = format!("console-ticket-{}", self.number.fetch_add(1, Ordering::SeqCst) + 1);
                let Console { host, thumbprint, path } = &self.console;
                let url = match kind {
                    "webmks" => format!("<url>wss://{host}/ticket/{ticket}</url>"),
                    _ => String::new(),
                };
                response(&format!(
                    "<returnval><ticket>{ticket}</ticket><cfgFile>{path}</cfgFile><host>{}</host><port>{}</port><sslThumbprint>{thumbprint}</sslThumbprint>{url}</returnval>",
                    host.ip(),
                    host.port()
                ))
            }
            "PowerOnVM_Task" | "PowerOffVM_Task" | "ResetVM_Task" | "SuspendVM_Task" | "ReconfigVM_Task" => {
                response("<returnval type=\"Task\">task-1</returnval>")
            }
            "RetrieveProperties" => response(
                "<returnval><obj type=\"Task\">task-1</obj><propSet><name>info.state</name><val xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xsi:type=\"TaskInfoState\">success</val></propSet></returnval>",
            ),
            _ => response(""),
        }
    }
}

const SERVICE_CONTENT: &str = "<returnval><rootFolder type=\"Folder\">group-d1</rootFolder><propertyCollector type=\"PropertyCollector\">propertyCollector</propertyCollector><about><name>fake</name><fullName>fake</fullName><vendor>fake</vendor><version>8.0.0</version><build>1</build><osType>linux</osType><productLineId>vpx</productLineId><apiType>VirtualCenter</apiType><apiVersion>8.0.0.0</apiVersion></about><sessionManager type=\"SessionManager\">SessionManager</sessionManager></returnval>";
const SESSION: &str = "<returnval><key>k</key><userName>u</userName><fullName>u</fullName><loginTime>2026-01-01T00:00:00Z</loginTime><lastActiveTime>2026-01-01T00:00:00Z</lastActiveTime><locale>en</locale><messageLocale>en</messageLocale></returnval>";

pub fn envelope(inside: &str) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><soapenv:Envelope xmlns:soapenv=\"http://schemas.xmlsoap.org/soap/envelope/\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\"><soapenv:Body>{inside}</soapenv:Body></soapenv:Envelope>"
    )
}

fn fault_body(kind: &str) -> String {
    format!(
        "<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>said by the fake</faultstring><detail><{kind}Fault xmlns=\"urn:vim25\" xsi:type=\"{kind}\"/></detail></soapenv:Fault>"
    )
}

fn respond(tls: &mut Tls, status: &str, fields: &str, body: &str) -> io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/xml; charset=utf-8\r\n{fields}Content-Length: {}\r\n\r\n",
        body.len()
    );
    tls.write_all((head + body).as_bytes())?;
    tls.flush()
}

/// `None` at the end of the connection.
fn read_call(reader: &mut BufReader<Tls>) -> io::Result<Option<Call>> {
    let (mut length, mut cookie, mut line, mut first) = (0, None, String::new(), true);
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if std::mem::take(&mut first) {
            assert!(line.starts_with("POST /sdk HTTP/1.1"), "{line:?}");
        }
        match line.trim_end().split_once(": ") {
            None if line.trim_end().is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.parse().unwrap()
            }
            Some((name, value)) if name.eq_ignore_ascii_case("cookie") => {
                let value = value.strip_prefix("vmware_soap_session=").unwrap_or(value);
                cookie = Some(value.trim_matches('"').to_owned());
            }
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = String::from_utf8(body).unwrap();
    let inside = body.split_once("Body>").map_or("", |(_, inside)| inside);
    let method = between(inside, "<", " ").unwrap_or_default().to_owned();
    let this = between(inside, "<_this ", "</_this>").unwrap_or_default();
    let object = this.rsplit_once('>').map_or("", |(_, id)| id).to_owned();
    Ok(Some(Call { method, object, cookie, body }))
}

pub fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    rest.split_once(to).map(|(inside, _)| inside)
}
