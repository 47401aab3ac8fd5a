//! Runs the real executable. Tests wait for its output, never for a fixed time.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// A timeout against hanging tests, much longer than any test takes.
const HUNG: Duration = Duration::from_secs(400);

/// The result of a run.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// The rest of standard output.
    pub out: String,
    /// The rest of standard error.
    pub err: String,
}

/// A running process, killed on drop.
pub struct Triage {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

/// The executable with a clean environment, so that this machine's variables have no effect.
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

/// `serve` with another copy of the executable, on free ports.
pub fn serving(program: &Path, arguments: &[&str]) -> Command {
    let mut command = of(program);
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).args(arguments);
    command
}

/// Runs a command to its end.
pub fn run(arguments: &[&str]) -> Ended {
    Triage::start(&mut triage(arguments)).ended()
}

impl Triage {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the binary starts");
        let (out, err) = (lines(child.stdout.take().unwrap()), lines(child.stderr.take().unwrap()));
        Self { child, out, err }
    }

    /// Starts `triage serve` on a free port. Returns the process and its address.
    pub fn serve(arguments: &[&str]) -> (Self, SocketAddr) {
        Self::serve_with(arguments, &[])
    }

    /// The same with environment variables.
    pub fn serve_with(arguments: &[&str], environment: &[(&str, &str)]) -> (Self, SocketAddr) {
        let all: Vec<&str> =
            ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"].iter().chain(arguments).copied().collect();
        let mut host = Self::start(triage(&all).envs(environment.iter().copied()));
        let line = host.says("listening on http://");
        let address = line.rsplit("//").next().unwrap().parse().unwrap_or_else(|_| panic!("no address in {line:?}"));
        (host, address)
    }

    /// Waits for a line of standard output that contains `text`.
    pub fn says(&mut self, text: &str) -> String {
        wait(&self.out, text)
    }

    /// Waits for a line of standard error that contains `text`.
    pub fn logs(&mut self, text: &str) -> String {
        wait(&self.err, text)
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
    }

    /// Sends SIGKILL.
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

/// All lines until the process closes the pipe.
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

/// Sends a GET and reads the whole response.
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

/// Reads the whole response.
pub fn answer(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}
