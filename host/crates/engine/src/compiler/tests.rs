#![allow(clippy::unwrap_used, clippy::panic)]
//! Which output of a child this process accepts.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

/// A compiler that ignores its input and writes what a shell script prints.
fn scripted(folder: &std::path::Path, script: &str, memory_bytes: u64) -> Compiler {
    let program = folder.join("compiler");
    fs::write(&program, format!("#!/bin/sh\ncat > /dev/null\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    Compiler { program, memory_bytes, time: Duration::from_secs(300) }
}

fn compiled_by(script: &str, memory_bytes: u64) -> Result<Compiled, CompileError> {
    let folder = tempfile::tempdir().unwrap();
    scripted(folder.path(), script, memory_bytes).compile(Tier::Sync, b"component")
}

fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A buffer that doubles would need 128 MiB and a copy for 96 MiB of code.
#[test]
fn code_is_held_once() {
    const CODE_BYTES: u64 = 96 << 20;
    // The length is 0x0000_0000_0600_0000 in little endian.
    let script = format!("printf '\\000\\000\\000\\000\\006\\000\\000\\000\\000'\nhead -c {CODE_BYTES} /dev/zero");
    let before = peak_bytes();
    let code = compiled_by(&script, 1 << 30).unwrap().unwrap();
    assert_eq!(code.len() as u64, CODE_BYTES);
    let taken = peak_bytes() - before;
    assert!(taken < CODE_BYTES + (8 << 20), "{} MiB", taken >> 20);
}

#[test]
fn a_result_that_is_none_is_refused() {
    let tell = "printf '\\000\\000\\000\\000\\006\\000\\000\\000\\000'";
    let large = compiled_by(&format!("{tell}\nhead -c 1000 /dev/zero"), 64 << 20).unwrap_err();
    assert!(
        matches!(large, CompileError::TooMuchCode { bytes, limit_bytes } if (bytes, limit_bytes) == (96 << 20, 32 << 20)),
        "{large}"
    );
    for script in ["", "printf '\\000\\001'", "printf '\\002text'", &format!("{tell}\nprintf less")] {
        let error = compiled_by(script, 1 << 30).unwrap_err();
        assert!(matches!(error, CompileError::Died(_)), "{script}: {error}");
    }
    let reply = compiled_by("printf '\\001it is no component'", 1 << 30).unwrap();
    assert_eq!(reply.unwrap_err(), "it is no component");
}
