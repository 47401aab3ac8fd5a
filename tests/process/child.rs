//! A run of the real binary. Tests wait for its lines, never for a time.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// A guard against hanging for ever, far above what anything here takes.
const HUNG: Duration = Duration::from_secs(400);

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output that nobody waited for.
    pub out: String,
    /// Standard error that nobody waited for.
    pub err: String,
}

/// A process that runs; killed when dropped.
pub struct Triage {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

/// The binary with an environment of its own, so that this machine's variables configure nothing.
pub fn triage(arguments: &[&str]) -> Command {
    let mut command = of(Path::new(env!("CARGO_BIN_EXE_triage")));
    command.args(arguments);
    command
}

fn of(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in ["PATH", "HOME", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// `serve` by another copy of the binary, on ports that the system chooses.
pub fn serving(program: &Path, arguments: &[&str]) -> Command {
    let mut command = of(program);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).args(arguments);
    command
}

/// Runs to the end.
pub fn run(arguments: &[&str]) -> Ended {
    Triage::start(&mut triage(arguments)).ended()
}

impl Triage {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let (out, err) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    /// `triage serve` on a port that the system chooses, and its address.
    pub fn serve(arguments: &[&str]) -> (Self, SocketAddr) {
        Self::serve_with(arguments, &[])
    }

    /// The same with variables of its environment.
    pub fn serve_with(arguments: &[&str], environment: &[(&str, &str)]) -> (Self, SocketAddr) {
        let all: Vec<&str> =
            ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"].iter().chain(arguments).copied().collect();
        let mut host = Self::start(triage(&all).envs(environment.iter().copied()));
        let line = host.says("listening on http://");
        let address = line.rsplit("//").next().unwrap().parse().unwrap_or_else(|_| panic!("no address in {line:?}"));
        (host, address)
    }

    /// Waits for a line on standard output that holds `text`.
    pub fn says(&mut self, text: &str) -> String {
        wait(&self.out, text)
    }

    /// Waits for a line on standard error that holds `text`.
    pub fn logs(&mut self, text: &str) -> String {
        wait(&self.err, text)
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// A signal by its name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().code(), None, "it had ended before it was killed");
    }

    /// Waits for its end.
    pub fn ended(mut self) -> Ended {
        let (out, err) = (rest(&self.out), rest(&self.err));
        Ended { code: self.child.wait().unwrap().code(), out, err }
    }
}

impl Drop for Triage {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

fn wait(lines: &Receiver<String>, text: &str) -> String {
    let mut before = Vec::new();
    loop {
        match lines.recv_timeout(HUNG) {
            Ok(line) if line.contains(text) => return line,
            Ok(line) => before.push(line),
            Err(error) => panic!("{text:?} was never printed ({error}); before: {before:#?}"),
        }
    }
}

/// All lines until the process closes its end.
fn rest(lines: &Receiver<String>) -> String {
    let mut all = String::new();
    loop {
        match lines.recv_timeout(HUNG) {
            Ok(line) => all.extend([line.as_str(), "\n"]),
            Err(mpsc::RecvTimeoutError::Disconnected) => return all,
            Err(error) => panic!("the process does not end ({error}); it said:\n{all}"),
        }
    }
}

/// Sends a GET and reads the whole answer.
pub fn get(address: SocketAddr, path: &str) -> String {
    answer(&mut ask(address, path))
}

/// Sends a GET.
pub fn ask(address: SocketAddr, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HUNG)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n").unwrap();
    stream
}

/// The whole answer.
pub fn answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
