//! Compiles components in a child process with a limit of time and memory.
//!
//! Compilation is the only part of a load whose cost can be out of all proportion to the file: 8.5 kB took 10 s and 564 MB. In the host's
//! process, a compilation would take memory from the requests and could not be stopped. Killing a child process frees its memory.

use super::{component_info::Tier, engine_config};
use rustix::{
    io::Errno,
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setpriority_process, setrlimit},
};
use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};
use tokio::time::Instant;
use triage_core::rounded::Rounded;

/// The first argument of the child: a hidden command of `triage`.
pub const ARGUMENT: &str = "compile-component";
/// The maximum size of the code that the child returns. An 18 MB Python component compiles to about 80 MB.
const MAX_CODE_BYTES: u64 = 256 << 20;
/// The maximum size of a component that the child reads.
const MAX_COMPONENT_BYTES: u64 = 64 << 20;
/// The maximum length of the child's error text.
const MAX_ERROR_BYTES: usize = 16 << 10;
/// The time between two checks of the child's memory. In that time the compiler allocates a few MB.
const MEMORY_CHECK_INTERVAL: Duration = Duration::from_millis(10);
/// The child's niceness, so that request threads get the processor first.
const NICENESS: i32 = 10;

/// The first byte of the child's output: `CODE_TAG` before the length of the code and the code, `ERROR_TAG` before the error's text.
const CODE_TAG: u8 = 0;
const ERROR_TAG: u8 = 1;

/// The program and the limits of the child process that compiles components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// The `triage` binary. A process that runs `triage` uses [`own_program`].
    pub program: PathBuf,
    /// The maximum resident memory of the child, in bytes.
    pub memory_bytes: u64,
    /// The maximum time of a compilation.
    pub time: Duration,
}

/// Why a component was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The process could not be started, or its pipes failed.
    #[error("the compiler process could not be used; `triage` must be able to start itself")]
    Process(#[source] io::Error),
    /// The compilation took longer than its limit.
    #[error("the component did not compile within {} (policies.compile_time); make it smaller, or raise the limit", Rounded(*.0))]
    TooSlow(Duration),
    /// The compilation used more memory than its limit.
    #[error(
        "compiling the component took more than {} MiB (policies.compile_memory, and half of server.memory_limit); \
         make it smaller, or raise the limit",
        .0 >> 20
    )]
    TooMuchMemory(u64),
    /// The code is too large for this process.
    #[error(
        "the component compiles to {} MiB of code; at most {} MiB are allowed (half of policies.compile_memory, at \
         most 256 MiB): make it smaller, or raise the limit",
        bytes >> 20, limit_bytes >> 20
    )]
    TooMuchCode {
        /// The size of the code.
        bytes: u64,
        /// The maximum size that this process accepts.
        limit_bytes: u64,
    },
    /// The engine compiles nothing, and the cache does not have the component's code.
    #[error("the component is not compiled yet")]
    NotCached,
    /// The child ended without a result.
    #[error("the compiler ended without a result ({0}); build the component again, and report it")]
    Died(String),
}

/// The child's result: code, or the compiler's error.
pub(super) type Compiled = Result<Vec<u8>, String>;

impl Compiler {
    /// Compiles a component for a tier. Blocks.
    pub(super) fn compile(&self, tier: Tier, component: &[u8]) -> Result<Compiled, CompileError> {
        let mut command = Command::new(&self.program);
        command.args([ARGUMENT, tier.name()]).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().map_err(CompileError::Process)?;
        let mut child = KilledOnDrop(child);
        let input = child.0.stdin.take();
        let output = child.0.stdout.take();
        thread::scope(|scope| {
            // Write and read at the same time: one after the other could deadlock when a pipe is full.
            scope.spawn(move || input.map(|mut input| input.write_all(component)));
            // For a moment this process holds the code twice: the bytes, and the component loaded from them.
            let limit_bytes = MAX_CODE_BYTES.min(self.memory_bytes / 2);
            let reading = scope.spawn(move || match output {
                Some(output) => read_result(output, limit_bytes),
                None => Err(no_result("it has no output")),
            });
            let waited = self.wait(&mut child.0);
            let read = reading.join().unwrap_or_else(|_| Err(no_result("its output was not read")));
            match (waited, read) {
                // The child fails when this process stops reading its output: report the cause, not the child's end.
                (_, Err(error @ CompileError::TooMuchCode { .. })) | (Err(error), _) => Err(error),
                (Ok(()), read) => read,
            }
        })
    }

    /// Waits until the child has ended. Kills it if it exceeds a limit.
    fn wait(&self, child: &mut Child) -> Result<(), CompileError> {
        let began = Instant::now();
        loop {
            if let Some(status) = child.try_wait().map_err(CompileError::Process)? {
                return if status.success() { Ok(()) } else { Err(CompileError::Died(status.to_string())) };
            }
            let over = if began.elapsed() >= self.time {
                Some(CompileError::TooSlow(self.time))
            } else if resident(child.id()).is_some_and(|bytes| bytes > self.memory_bytes) {
                Some(CompileError::TooMuchMemory(self.memory_bytes))
            } else {
                None
            };
            if let Some(error) = over {
                // The child's pipes close with it, so the threads that write and read them end too.
                let _ = child.kill();
                return Err(error);
            }
            thread::sleep(MEMORY_CHECK_INTERVAL);
        }
    }
}

/// Reads the child's output. Reserves a buffer for the code once: a buffer that grows would need up to three times the memory.
fn read_result(mut output: impl io::Read, limit_bytes: u64) -> Result<Compiled, CompileError> {
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => no_result("it returned no result"),
        _ => CompileError::Process(error),
    };
    let mut tag = [0];
    output.read_exact(&mut tag).map_err(ended)?;
    match tag {
        [CODE_TAG] => {
            let mut length = [0; 8];
            output.read_exact(&mut length).map_err(ended)?;
            let bytes = u64::from_le_bytes(length);
            if bytes > limit_bytes {
                return Err(CompileError::TooMuchCode { bytes, limit_bytes });
            }
            let length = usize::try_from(bytes).unwrap_or(usize::MAX);
            let mut code = Vec::new();
            code.try_reserve_exact(length).map_err(|_| CompileError::TooMuchCode { bytes, limit_bytes })?;
            output.take(bytes).read_to_end(&mut code).map_err(CompileError::Process)?;
            if code.len() == length { Ok(Ok(code)) } else { Err(no_result("its result is shorter than announced")) }
        }
        [ERROR_TAG] => {
            let mut text = Vec::new();
            output.take(MAX_ERROR_BYTES as u64).read_to_end(&mut text).map_err(CompileError::Process)?;
            Ok(Err(String::from_utf8_lossy(&text).into_owned()))
        }
        _ => Err(no_result("its result is not compiled code")),
    }
}

fn no_result(why: &str) -> CompileError {
    CompileError::Died(why.to_owned())
}

/// The program that this process runs. An upgrade may have replaced its file since the start, but the child must be the same version.
/// `/proc/self/exe` names the running program even then.
///
/// # Errors
/// The system does not know the program's path.
pub fn own_program() -> io::Result<PathBuf> {
    const RUNNING: &str = "/proc/self/exe";
    if fs::metadata(RUNNING).is_ok() { Ok(PathBuf::from(RUNNING)) } else { std::env::current_exe() }
}

/// A child process that is killed when this value is dropped.
struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resident(process: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// The child: reads a component from standard input and writes its code to standard output.
///
/// # Errors
/// Standard input cannot be read, or standard output cannot be written.
pub fn compile_child(tier: &str) -> io::Result<()> {
    step_back();
    let mut component = Vec::new();
    io::stdin().lock().take(MAX_COMPONENT_BYTES + 1).read_to_end(&mut component)?;
    let mut out = io::stdout().lock();
    match compiled(tier, &component) {
        Ok(code) => {
            out.write_all(&[CODE_TAG])?;
            out.write_all(&(code.len() as u64).to_le_bytes())?;
            out.write_all(&code)?;
        }
        Err(text) => {
            out.write_all(&[ERROR_TAG])?;
            out.write_all(&text.as_bytes()[..text.len().min(MAX_ERROR_BYTES)])?;
        }
    }
    out.flush()
}

fn compiled(tier: &str, component: &[u8]) -> Compiled {
    let tier = tier.parse::<Tier>().map_err(|_| format!("there is no tier {tier}"))?;
    if component.len() as u64 > MAX_COMPONENT_BYTES {
        return Err("the component is too large".to_owned());
    }
    let engine = engine_config::for_tier(tier).map_err(|error| format!("{error}: {:#}", error.0))?;
    engine.precompile_component(component).map_err(|error| format!("{error:#}"))
}

/// Gives this process a lower priority than the host's for the processor, makes it the first one that the kernel kills when memory runs
/// out, and lets it end with its parent.
fn step_back() {
    // Ignore refusals: the parent's limits hold without these settings.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = setpriority_process(None, NICENESS);
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let core = getrlimit(Resource::Core);
    let _: Result<(), Errno> = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: core.maximum });
}

#[cfg(test)]
#[path = "compiler/tests.rs"]
mod tests;
