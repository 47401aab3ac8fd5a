//! Complete imports against a minimal host, in paused time.

use super::host::{Mishap, Way, by_chance};
use crate::{
    clock::Clock,
    import::{
        Activation, Context, ImportError, JournalError, Options, Report, RequestOutcome, RetryLimits, Silent, Subject,
        Summary, Totals, preview, run_in,
    },
    rng::Rng,
};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tempfile::TempDir;

fn context(way: &Way, seed: u64) -> Context {
    Context {
        transport: Arc::new(way.clone()),
        entropy: Rng::seeded(seed),
        clock: Clock::anchored(0),
        retry_limits: RetryLimits::default(),
    }
}

/// A file with this number of rows, in pairs of equal ones.
fn file(rows: usize) -> (TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hospitals.csv");
    let rows: Vec<_> = (0..rows).map(|n| format!("H{},Street,", n / 2)).collect();
    std::fs::write(&path, format!("name,address,phone\n{}\n", rows.join("\n"))).unwrap();
    let options = Options { activate: true, ..Options::new(path, "http://host:1".parse().unwrap()) };
    (folder, options)
}

async fn import(way: &Way, options: &Options, seed: u64) -> Result<Summary, ImportError> {
    // An aborted run stays locked until its last write has ended.
    for _ in 0..1_000 {
        match run_in(context(way, seed), options, &mut Silent).await {
            Err(ImportError::Locked(_)) => tokio::task::spawn_blocking(std::thread::yield_now).await.unwrap(),
            other => return other,
        }
    }
    panic!("locked for ever");
}

#[tokio::test(start_paused = true)]
async fn a_file_of_45_rows_makes_three_batches_and_activates_each_when_it_is_whole() {
    let way = Way::to(|_| Mishap::None);
    let (_folder, options) = file(45);
    let summary = import(&way, &options, 1).await.unwrap();
    assert!(summary.complete());
    assert_eq!(summary.totals(), Totals { created: 45, ..Totals::default() });
    assert_eq!(summary.activations, [Activation::Done(20), Activation::Done(20), Activation::Done(5)]);
    let made = way.0.made();
    let batches: HashSet<_> = made.iter().map(|(_, batch)| batch).collect();
    let keys: HashSet<_> = way.0.seen().into_iter().map(|seen| seen.key).collect();
    assert_eq!((made.len(), batches.len(), keys.len()), (45, 3, 48));
    assert!(way.0.seen().iter().all(|seen| !seen.maybe_sent && seen.key.starts_with('"')));
    assert!(summary.to_string().ends_with("45 rows in 3 batches: 45 created, 0 rejected, 0 not sent, 0 unknown; 20 s"));

    let again = import(&way, &options, 2).await.unwrap();
    assert_eq!((again.rows, again.activations), (summary.rows, summary.activations), "all is in the journal");
    assert_eq!(way.0.made().len(), 45);
}

#[tokio::test(start_paused = true)]
async fn a_twenty_row_file_goes_in_one_wave() {
    let way = Way::to(|_| Mishap::None);
    let (_folder, options) = file(20);
    let summary = import(&way, &Options { activate: false, ..options }, 1).await.unwrap();
    assert_eq!((summary.elapsed, summary.activations.len()), (Duration::from_secs(5), 0));
}

#[tokio::test(start_paused = true)]
async fn rows_that_may_have_been_sent_keep_their_key_and_say_so() {
    let mut first = true;
    let way = Way::to(move |_| if std::mem::take(&mut first) { Mishap::LostAfter } else { Mishap::None });
    let (_folder, options) = file(1);
    let summary = import(&way, &options, 1).await.unwrap();
    assert!(summary.complete(), "{summary}");
    let creates: Vec<_> = way.0.seen().into_iter().filter(|seen| seen.path == "/hospitals/").collect();
    assert!(creates.len() > 1 && creates.iter().all(|seen| seen.key == creates[0].key));
    assert_eq!(creates.iter().map(|seen| seen.maybe_sent).collect::<Vec<_>>()[..2], [false, true]);
    assert_eq!(way.0.made().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_batch_with_an_unknown_or_unsent_row_is_never_activated() {
    for (mishap, totals) in [
        (Mishap::Unknown, Totals { created: 2, unknown: 1, ..Totals::default() }),
        (Mishap::LostBefore, Totals { created: 2, unknown: 1, ..Totals::default() }),
        (Mishap::Refused, Totals { created: 2, not_sent: 1, ..Totals::default() }),
        (Mishap::Unreached, Totals { created: 2, not_sent: 1, ..Totals::default() }),
    ] {
        let way = Way::to(move |seen| if seen.body["name"] == "H1" { mishap } else { Mishap::None });
        let (_folder, options) = file(3);
        let summary = import(&way, &options, 1).await.unwrap();
        assert_eq!(summary.totals(), totals, "{mishap:?}");
        assert_eq!(summary.activations, [Activation::Withheld(1)], "{mishap:?}");
        assert!(way.0.activated().is_empty() && !summary.complete(), "{mishap:?}");
        assert!(
            summary.to_string().ends_with("Run the same command again to settle the rest; the journal keeps the keys.")
        );

        way.0.set(|_| Mishap::None);
        let again = import(&way, &options, 2).await.unwrap();
        assert!(again.complete(), "{mishap:?}: {again}");
        assert_eq!(again.activations, [Activation::Done(3)], "{mishap:?}");
        let third: Vec<_> = way.0.seen().into_iter().filter(|seen| seen.body["name"] == "H1").collect();
        assert!(third.iter().all(|seen| seen.key == third[0].key), "{mishap:?}");
        let reported = third.last().unwrap().maybe_sent;
        assert_eq!(reported, totals.unknown == 1, "{mishap:?}");
        assert_eq!(way.0.made().len(), 3, "{mishap:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn rejected_rows_stay_rejected_and_do_not_hold_a_batch_up() {
    let way = Way::to(|seen| if seen.body["name"] == "H1" { Mishap::Rejected } else { Mishap::None });
    let (_folder, options) = file(3);
    let summary = import(&way, &options, 1).await.unwrap();
    assert_eq!(summary.rows[2].outcome, RequestOutcome::Rejected("no".to_owned()));
    assert_eq!((&summary.activations[..], summary.complete()), (&[Activation::Done(2)][..], false));
    let asked = way.0.seen().len();
    let again = import(&way, &options, 2).await.unwrap();
    assert_eq!(again.rows[2].outcome, RequestOutcome::Rejected("in an earlier run".to_owned()));
    assert_eq!(way.0.seen().len(), asked);

    let way = Way::to(|_| Mishap::Rejected);
    let (_folder, options) = file(1);
    assert_eq!(import(&way, &options, 1).await.unwrap().activations, [Activation::Empty]);
}

#[tokio::test(start_paused = true)]
async fn killed_again_and_again_it_ends_with_every_row_made_once() {
    for seed in 0..40 {
        let way = Way::to(by_chance(seed));
        let (_folder, options) = file(7);
        let chance = Rng::seeded(seed);
        let mut runs = 0;
        let summary = loop {
            runs += 1;
            assert!(runs < 200, "seed {seed}: no end");
            let retry_limits = Duration::from_millis(chance.next() % 20_000);
            let run = import(&way, &options, seed * 1_000 + runs);
            // Dropping the future leaves the same state as kill -9: a journal, and a host that continues.
            if let Ok(summary) = tokio::time::timeout(retry_limits, run).await {
                let summary = summary.unwrap();
                if summary.complete() {
                    break summary;
                }
            }
        };
        assert_eq!(way.0.made().len(), 7, "seed {seed}: a row was made twice or not at all");
        let ids: HashSet<_> = summary.rows.iter().map(|row| format!("{:?}", row.outcome)).collect();
        assert_eq!(ids.len(), 7, "seed {seed}: two rows got the same hospital");
        assert_eq!(way.0.activated().len(), 1, "seed {seed}");
    }
}

/// Old spreadsheet programs write CR line ends. Each row still has its own line in the report and the journal, so a run can be resumed.
#[tokio::test(start_paused = true)]
async fn a_file_with_cr_line_ends_is_imported_and_resumed() {
    let way = Way::to(|seen| if seen.body["name"] == "H1" { Mishap::Refused } else { Mishap::None });
    let (_folder, options) = file(3);
    let text = std::fs::read_to_string(&options.file).unwrap().replace('\n', "\r");
    std::fs::write(&options.file, text).unwrap();
    let summary = import(&way, &options, 1).await.unwrap();
    assert_eq!(summary.totals(), Totals { created: 2, not_sent: 1, ..Totals::default() }, "{summary}");
    assert_eq!(summary.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 3, 4]);
    way.0.set(|_| Mishap::None);
    assert!(import(&way, &options, 2).await.unwrap().complete());
    assert_eq!(way.0.made().len(), 3);
    // An earlier version counted such lines differently, so its journal would lead to other keys.
    let journal = std::fs::read_to_string(options.journal_path()).unwrap();
    std::fs::write(options.journal_path(), journal.replacen("\"version\":2", "\"version\":1", 1)).unwrap();
    let error = import(&way, &options, 3).await.unwrap_err();
    assert!(matches!(error, ImportError::BadJournal { source: JournalError::LineCount, .. }), "{error}");
}

/// A journal of version 1 is resumed if version 1 counted its lines in the same way.
#[tokio::test(start_paused = true)]
async fn a_journal_of_version_1_goes_on() {
    let way = Way::to(|_| Mishap::None);
    let (_folder, options) = file(3);
    assert!(import(&way, &options, 1).await.unwrap().complete());
    let journal = std::fs::read_to_string(options.journal_path()).unwrap();
    std::fs::write(options.journal_path(), journal.replacen("\"version\":2", "\"version\":1", 1)).unwrap();
    assert!(import(&way, &options, 2).await.unwrap().complete());
    assert_eq!(way.0.made().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_preview_tells_what_would_be_sent_and_changes_nothing() {
    let way = Way::to(|seen| if seen.body["name"] == "H1" { Mishap::Unknown } else { Mishap::None });
    let (_folder, options) = file(3);
    let before = preview(&options).unwrap();
    assert_eq!((before.rows, before.batches, before.fresh, before.maybe_sent, before.settled), (3, 1, 3, 0, 0));
    assert_eq!(before.equal, [(3, 2)]);
    assert!(before.to_string().starts_with(
        "3 rows in 1 batch, to http://host:1/\n3 to send, 0 that may have been sent (verified first), 0 settled by an earlier run\nline 3 equals line 2: each line creates its own hospital\n"
    ));
    assert!(!options.journal_path().exists(), "a journal was made");
    import(&way, &options, 1).await.unwrap();
    let journal = std::fs::read(options.journal_path()).unwrap();
    let torn = [&journal[..], b"{\"result"].concat();
    std::fs::write(options.journal_path(), &torn).unwrap();
    let after = preview(&options).unwrap();
    assert_eq!((after.fresh, after.maybe_sent, after.settled), (0, 1, 2));
    assert_eq!(std::fs::read(options.journal_path()).unwrap(), torn, "the journal was changed");
    assert_eq!(way.0.seen().len(), 3, "something was sent");

    let held = std::fs::File::open(options.journal_path()).unwrap();
    held.lock().unwrap();
    assert!(matches!(preview(&options), Err(ImportError::Locked(_))));
    drop(held);
    std::fs::write(&options.file, "name,address\nX,Y\n").unwrap();
    assert!(matches!(preview(&options), Err(ImportError::OtherFile(_))));
}

#[tokio::test(start_paused = true)]
async fn an_import_refuses_bad_options_before_it_sends_a_row() {
    let way = Way::to(|_| Mishap::None);
    let (folder, options) = file(2);
    let missing = Options::new(folder.path().join("none.csv"), options.to.clone());
    assert!(matches!(import(&way, &missing, 1).await, Err(ImportError::Csv { .. })));
    let own = Options { journal: Some(options.file.clone()), ..options.clone() };
    let error = import(&way, &own, 1).await.unwrap_err();
    assert!(matches!(error, ImportError::BadJournal { .. }), "{error}");

    let held = std::fs::File::create(options.journal_path()).unwrap();
    held.lock().unwrap();
    let error = run_in(context(&way, 1), &options, &mut Silent).await.unwrap_err();
    assert!(matches!(error, ImportError::Locked(_)), "{error}");
    drop(held);

    let error = import(&Way::to_somebody_else(), &options, 1).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "http://host:1/ answers, but is not a Triage host; without Triage, rows could be created twice: name the host's url, not the hospital API's"
    );
    assert!(way.0.seen().is_empty());
    import(&way, &options, 1).await.unwrap();

    let elsewhere = Options { to: "http://other:1".parse().unwrap(), ..options.clone() };
    assert!(matches!(import(&way, &elsewhere, 1).await, Err(ImportError::OtherHost { .. })));
    let smaller = Options { batch_size: Some(5), ..options.clone() };
    assert!(matches!(import(&way, &smaller, 1).await, Err(ImportError::OtherBatchSize { was: 20, is: 5, .. })));
    std::fs::write(&options.file, "name,address\nX,Y\n").unwrap();
    assert!(matches!(import(&way, &options, 1).await, Err(ImportError::OtherFile(_))));
    assert_eq!(way.0.made().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_journal_tells_nothing_of_the_rows_and_is_its_owners() {
    let way = Way::to(|_| Mishap::None);
    let (_folder, options) = file(2);
    import(&way, &options, 1).await.unwrap();
    let journal = std::fs::read_to_string(options.journal_path()).unwrap();
    assert!(!journal.contains("H0") && !journal.contains("Street"), "{journal}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(options.journal_path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // The incomplete line is removed, and the file continues.
    let torn = &journal[..journal.len() - 9];
    std::fs::write(options.journal_path(), torn).unwrap();
    assert!(import(&way, &options, 2).await.unwrap().complete());
    let healed = std::fs::read_to_string(options.journal_path()).unwrap();
    assert!(healed.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{healed}");
}

#[derive(Default)]
struct Heard(Vec<String>);

impl Report for Heard {
    fn begin(&mut self, rows: usize, batches: usize, settled: usize) {
        self.0.push(format!("{rows} {batches} {settled}"));
    }
    fn row(&mut self, line: u64, outcome: &RequestOutcome) {
        self.0.push(format!("{line} {outcome}"));
    }
    fn batch(&mut self, number: u32, activation: &Activation) {
        self.0.push(format!("{number} {activation}"));
    }
    fn waiting(&mut self, what: Subject, after: Duration, why: &str) {
        self.0.push(format!("{what:?} {} {why}", after.as_millis()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_import_reports_each_step_as_it_happens() {
    let mut first = true;
    let way = Way::to(move |_| if std::mem::take(&mut first) { Mishap::Refused } else { Mishap::None });
    let (_folder, options) = file(1);
    let mut heard = Heard::default();
    run_in(context(&way, 1), &options, &mut heard).await.unwrap();
    assert_eq!(heard.0, ["1 1 0", "Line(2) 1000 breaker-open", "2 created   id 1", "0 activated, 1 hospital"]);
}
