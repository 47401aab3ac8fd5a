//! Resource usage of this process, from `/proc`.

use super::Cgroup;
use std::fs;

/// Resource usage of this process, as the metrics give it.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    /// Resident memory.
    pub memory_bytes: Option<u64>,
    /// Processor time since the start.
    pub cpu_seconds: f64,
    /// Open file descriptors.
    pub open_files: Option<usize>,
}

/// Resident memory of this process in bytes; `None` without `/proc`.
pub fn memory_bytes() -> Option<u64> {
    let pages = fs::read_to_string("/proc/self/statm").ok();
    let resident = pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    resident.map(|pages| pages * rustix::param::page_size() as u64)
}

/// Memory that counts against the limit: resident memory, or the control group's usage if that is more.
pub fn memory_used(cgroup: Option<&Cgroup>) -> Option<u64> {
    let resident = memory_bytes();
    let counted = cgroup.and_then(Cgroup::usage);
    resident.max(counted)
}

/// Reads the usage now. A few system calls.
pub fn read() -> Process {
    Process {
        memory_bytes: memory_bytes(),
        cpu_seconds: crate::clock::process_time().as_secs_f64(),
        // Without the descriptor that `read_dir` itself opens.
        open_files: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count().saturating_sub(1)),
    }
}
