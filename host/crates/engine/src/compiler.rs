//! Compiles components in a process of their own, which may take so much time and memory and no more.
//!
//! The compiler is the one part of a load whose cost a file can drive out of all proportion: 8.5 kB took 10 s and 564 MB. In this
//! process that memory would be the requests', and nothing could end it. A child is ended, and its memory is gone with it.

use super::{component_info::Tier, engine};
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

/// The first argument of the child: a hidden command of `triage`.
pub const ARGUMENT: &str = "compile-component";
/// The largest code that is taken from the child: an 18 MB Python component compiles to about 80 MB.
const MAX_CODE_BYTES: u64 = 256 << 20;
/// The largest component that the child reads.
const COMPONENT_BYTES: u64 = 64 << 20;
/// The longest error that is taken from the child.
const ERROR_BYTES: usize = 16 << 10;
/// Between two looks at the child's memory: the compiler grows by a few MB meanwhile.
const LOOK: Duration = Duration::from_millis(10);
/// How far the child steps back behind request threads.
const NICE: i32 = 10;

/// The first byte of what the child writes. The length of the code follows, and the code; or the error's text to the end.
const CODE: u8 = 0;
const ERROR: u8 = 1;

/// How components are compiled in a process of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// The `triage` binary: [`own_program`] for a process that is one.
    pub program: PathBuf,
    /// The most memory that it may have resident.
    pub memory_bytes: u64,
    /// The longest that it may take.
    pub time: Duration,
}

/// Why a component was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The process could not be started or spoken to.
    #[error("the compiler's process could not be used; `triage` must be able to start itself")]
    Process(#[source] io::Error),
    /// It took too long.
    #[error("the component did not compile within {} ms (policies.compile_time); build it smaller, or raise the limit", .0.as_millis())]
    TooSlow(Duration),
    /// It took too much memory.
    #[error(
        "the component took more than {} MiB to compile (policies.compile_memory, and half of server.memory_limit); build it smaller, or raise the limit",
        .0 >> 20
    )]
    TooMuchMemory(u64),
    /// Its code is too large for this process to hold.
    #[error(
        "the component compiles to {} MiB of code, more than the {} MiB that this host takes (half of policies.compile_memory, at most 256 MiB); build it smaller, or raise the limit",
        bytes >> 20, limit_bytes >> 20
    )]
    TooMuchCode {
        /// The code's.
        bytes: u64,
        /// The most that is taken.
        limit_bytes: u64,
    },
    /// It ended without a result.
    #[error("the compiler ended without a result ({0}); build the component again, and report it")]
    Died(String),
}

/// The child's result: code, or why there is none.
pub(super) type Compiled = Result<Vec<u8>, String>;

impl Compiler {
    /// Compiles for a tier. Blocks.
    pub(super) fn compile(&self, tier: Tier, component: &[u8]) -> Result<Compiled, CompileError> {
        let mut command = Command::new(&self.program);
        command.args([ARGUMENT, tier.name()]).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.spawn().map_err(CompileError::Process)?;
        let mut child = Killed(child);
        let input = child.0.stdin.take();
        let output = child.0.stdout.take();
        thread::scope(|scope| {
            // Both ends at once: a child that ends early would leave one of them waiting.
            scope.spawn(move || input.map(|mut input| input.write_all(component)));
            // This process holds the code twice for a moment, as bytes and as what is loaded from them.
            let limit_bytes = MAX_CODE_BYTES.min(self.memory_bytes / 2);
            let reading = scope.spawn(move || match output {
                Some(output) => read_result(output, limit_bytes),
                None => Err(no_result("it has no output")),
            });
            let waited = self.wait(&mut child.0);
            let read = reading.join().unwrap_or_else(|_| Err(no_result("its output was not read")));
            match (waited, read) {
                // The child dies of a pipe that is no longer read.
                (_, Err(error @ CompileError::TooMuchCode { .. })) | (Err(error), _) => Err(error),
                (Ok(()), read) => read,
            }
        })
    }

    /// Waits until the child has ended well, or ends it.
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
                // Its pipes end with it, and so do the threads at them.
                let _ = child.kill();
                return Err(error);
            }
            thread::sleep(LOOK);
        }
    }
}

/// Reads what the child writes, the code into one buffer of its length: one that grows would take up to three times as much.
fn read_result(mut output: impl io::Read, limit_bytes: u64) -> Result<Compiled, CompileError> {
    let ended = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => no_result("it wrote no result"),
        _ => CompileError::Process(error),
    };
    let mut tag = [0];
    output.read_exact(&mut tag).map_err(ended)?;
    match tag {
        [CODE] => {
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
            if code.len() == length { Ok(Ok(code)) } else { Err(no_result("it wrote less than it said")) }
        }
        [ERROR] => {
            let mut text = Vec::new();
            output.take(ERROR_BYTES as u64).read_to_end(&mut text).map_err(CompileError::Process)?;
            Ok(Err(String::from_utf8_lossy(&text).into_owned()))
        }
        _ => Err(no_result("it wrote nothing that is code")),
    }
}

fn no_result(why: &str) -> CompileError {
    CompileError::Died(why.to_owned())
}

/// The program that this process runs. Its file may have been replaced since the start, by an upgrade: what is started again must
/// be the same program all the same, so the kernel is asked for the running one where it knows it.
///
/// # Errors
/// Where the system cannot tell.
pub fn own_program() -> io::Result<PathBuf> {
    const RUNNING: &str = "/proc/self/exe";
    if fs::metadata(RUNNING).is_ok() { Ok(PathBuf::from(RUNNING)) } else { std::env::current_exe() }
}

/// A child that does not outlive its caller.
struct Killed(Child);

impl Drop for Killed {
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
/// Where they cannot be read or written.
pub fn compile_child(tier: &str) -> io::Result<()> {
    step_back();
    let mut component = Vec::new();
    io::stdin().lock().take(COMPONENT_BYTES + 1).read_to_end(&mut component)?;
    let mut out = io::stdout().lock();
    match compiled(tier, &component) {
        Ok(code) => {
            out.write_all(&[CODE])?;
            out.write_all(&(code.len() as u64).to_le_bytes())?;
            out.write_all(&code)?;
        }
        Err(text) => {
            out.write_all(&[ERROR])?;
            out.write_all(&text.as_bytes()[..text.len().min(ERROR_BYTES)])?;
        }
    }
    out.flush()
}

fn compiled(tier: &str, component: &[u8]) -> Compiled {
    let tier = Tier::of_name(tier).ok_or_else(|| format!("there is no tier {tier}"))?;
    if component.len() as u64 > COMPONENT_BYTES {
        return Err("the component is too large".to_owned());
    }
    let engine = engine::for_tier(tier).map_err(|error| format!("{error}: {:#}", error.0))?;
    engine.precompile_component(component).map_err(|error| format!("{error:#}"))
}

/// Gives way to whoever serves requests: processor, memory, and life.
fn step_back() {
    // Where one of these is refused, the parent still ends the child in time.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let _ = setpriority_process(None, NICE);
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    let core = getrlimit(Resource::Core);
    let _: Result<(), Errno> = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: core.maximum });
}

#[cfg(test)]
#[path = "compiler/tests.rs"]
mod tests;
