//! `triage import` through `triage serve` to `triage emulator`: three processes, of which the import, or the import and the host,
//! are killed in the middle.

use super::child::{Ended, Triage, run, triage};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

const ROWS: usize = 12;

/// The directory, ten times faster than the real one.
fn directory(faults: &[&str]) -> (Triage, String) {
    let mut arguments = vec!["emulator", "--listen", "127.0.0.1:0", "--faster", "10"];
    for fault in faults {
        arguments.extend(["--fault", fault]);
    }
    let mut directory = Triage::start(&mut triage(&arguments));
    let line = directory.says("listens on http://");
    (directory, line.rsplit(' ').next().unwrap().to_owned())
}

fn file(folder: &Path) -> PathBuf {
    let rows: String = (1..=ROWS).map(|row| format!("Hospital {row},{row} Long Street,555-01{row:02}\n")).collect();
    let csv = folder.join("hospitals.csv");
    fs::write(&csv, format!("name,address,phone\n{rows}")).unwrap();
    csv
}

/// Three rows at once, so that some are done, some under way and some not begun when it is killed.
fn import(csv: &Path, to: SocketAddr) -> Triage {
    let to = format!("http://{to}");
    Triage::start(&mut triage(&["import", csv.to_str().unwrap(), "--to", &to, "--activate", "--concurrency", "3"]))
}

fn assert_each_row_was_made_once(import: &Ended, directory: Triage) {
    assert_eq!(import.code, Some(0), "{import:?}");
    let all = format!("{ROWS} rows in 1 batch: {ROWS} created, 0 rejected, 0 not sent, 0 unknown; ");
    assert!(import.out.contains(&all), "{import:?}");
    assert!(import.out.contains(&format!("batch 1: activated, {ROWS} hospitals\n")), "{import:?}");
    directory.terminate();
    let holds = directory.ended();
    assert!(holds.out.ends_with(&format!("; {ROWS} hospitals, 0 duplicates\n")), "{holds:?}");
}

#[test]
fn an_import_that_was_killed_goes_on_and_makes_each_row_once() {
    let folder = tempfile::tempdir().unwrap();
    let csv = file(folder.path());
    let (directory, url) = directory(&["create=reset-after@4"]);
    let (_host, address) = Triage::serve(&["--upstream", &url, "--policy", "hospital-directory"]);
    let mut first = import(&csv, address);
    first.logs(": created ");
    first.kill();
    let journal = fs::read_to_string(folder.path().join("hospitals.csv.journal")).unwrap();
    let sending = journal.lines().filter(|line| line.contains("\"sending\"")).count();
    assert!((1..ROWS).contains(&sending), "it was killed in the middle: {sending} rows were begun");
    let resumed = import(&csv, address).ended();
    assert!(resumed.err.contains(" settled by an earlier run"), "{resumed:?}");
    assert_each_row_was_made_once(&resumed, directory);
    // And once more: everything stands in the journal.
    let again = run(&["import", csv.to_str().unwrap(), "--to", &format!("http://{address}"), "--activate"]);
    assert_eq!(again.code, Some(0), "{again:?}");
}

#[test]
fn an_import_and_a_host_that_were_killed_together_make_no_row_twice() {
    let folder = tempfile::tempdir().unwrap();
    let csv = file(folder.path());
    let (directory, url) = directory(&[]);
    let (host, address) = Triage::serve(&["--upstream", &url, "--policy", "hospital-directory"]);
    let mut first = import(&csv, address);
    first.logs(": created ");
    host.kill();
    first.kill();
    // The new host remembers nothing: that these rows may have been sent stands only in the journal.
    let listen = address.to_string();
    let mut host = Triage::start(&mut triage(&[
        "serve",
        "--upstream",
        &url,
        "--policy",
        "hospital-directory",
        "--listen",
        &listen,
    ]));
    host.says("listening on");
    assert_each_row_was_made_once(&import(&csv, address).ended(), directory);
}
