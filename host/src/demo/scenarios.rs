//! The scenarios.

use super::{
    DemoError, Options, Shown,
    caller::Answer,
    fixture::{Fixture, OPEN_FOR},
    io_error,
};
use crate::{
    emulator::{Call, Fault, Faults, When},
    import::{self, RequestOutcome, Terminal},
};
use http::StatusCode;
use serde_json::json;
use std::{io::Write, time::Duration};
use tokio::time::{Instant, sleep};
use triage_core::rounded::Rounded;

/// Pause between two scenarios, to read the output.
const PAUSE: Duration = Duration::from_secs(2);
/// Maximum requests until the breaker opens.
const STORM: usize = 20;
const REFUSALS: usize = 1_000;
const BATCH: &str = "5f0c1f6e-3a0b-4d57-9f8e-0d6f4a7c2b10";

/// Prints a line to the screen.
macro_rules! say {
    ($screen:expr, $($text:tt)*) => {
        writeln!($screen, $($text)*).and_then(|()| $screen.flush()).map_err(io_error("the screen"))?
    };
}

/// Plays all scenarios, then prints the totals.
pub(super) async fn play(
    stage: &Fixture,
    options: &Options,
    screen: &mut (impl Write + Send),
) -> Result<Shown, DemoError> {
    let begun = Instant::now();
    let pause = if options.no_pause { Duration::ZERO } else { PAUSE };
    let mut shown = Shown::default();
    import_through_faults(stage, screen, &mut shown).await?;
    sleep(pause).await;
    storm_and_recovery(stage, screen, &mut shown).await?;
    sleep(pause).await;
    replay(stage, screen, &mut shown).await?;
    sleep(pause).await;
    sums(stage, screen, &mut shown, begun.elapsed())?;
    Ok(shown)
}

async fn import_through_faults(stage: &Fixture, screen: &mut impl Write, shown: &mut Shown) -> Result<(), DemoError> {
    say!(screen, "1. A file of 20 hospitals, imported through faults");
    say!(
        screen,
        "   Of the directory's creates, one in 4 is done and then the connection is reset, one in 7 is done and"
    );
    say!(
        screen,
        "   answered 500, one in 9 is done and answered with half of a JSON. A client that retried these would create"
    );
    say!(screen, "   hospitals twice; a client that did not would lose rows.\n");
    stage.emulator.set_faults(
        Faults::none()
            .on(Call::Create, When::every(4), Fault::ResetAfter)
            .on(Call::Create, When::every(7), Fault::FailAfter(StatusCode::INTERNAL_SERVER_ERROR))
            .on(Call::Create, When::every(9), Fault::Unreadable),
    );
    let options = import::Options { activate: true, ..import::Options::new(stage.folder.csv(), stage.url.clone()) };
    let summary = import::run(&options, &mut Terminal::new()).await?;
    stage.emulator.set_faults(Faults::none());
    for row in &summary.rows {
        if !matches!(row.outcome, RequestOutcome::Applied(_)) {
            say!(screen, "   line {}: {}", row.line, row.outcome);
        }
    }
    let hospitals = stage.emulator.hospitals();
    shown.asked += summary.rows.len();
    say!(
        screen,
        "   {} rows, {} answered as created, {}. The directory holds {} hospitals, {} of them twice, {} active;",
        summary.rows.len(),
        summary.totals().created,
        Rounded(summary.elapsed),
        hospitals.len(),
        stage.emulator.duplicates(),
        hospitals.iter().filter(|hospital| hospital.active).count(),
    );
    say!(
        screen,
        "   Creates that failed: {}. Creates sent for these rows: {}; verifications at the directory: {}.\n",
        stage.emulator.faults_injected(),
        arrived(stage, Call::Create),
        arrived(stage, Call::ListBatch),
    );
    Ok(())
}

async fn storm_and_recovery(stage: &Fixture, screen: &mut impl Write, shown: &mut Shown) -> Result<(), DemoError> {
    say!(screen, "2. The directory fails, and recovers");
    stage.emulator.set_faults(Faults::none().on(
        Call::List,
        When::Always,
        Fault::FailBefore(StatusCode::SERVICE_UNAVAILABLE),
    ));
    for asked in 1..=STORM {
        let answer = stage.caller.get("/hospitals/").await?;
        if answer.is_problem("breaker-open") {
            say!(
                screen,
                "   request {asked}: refused, the breaker is open; retry in {} s",
                answer.header("retry-after")
            );
            break;
        }
        let (status, attempts) = (answer.status.as_u16(), answer.header("triage-attempts"));
        say!(screen, "   request {asked}: {status}, attempts: {attempts}");
    }
    let before = arrived(stage, Call::List);
    let begun = Instant::now();
    let mut refused = 0;
    for _ in 0..REFUSALS {
        refused += usize::from(stage.caller.get("/hospitals/").await?.is_problem("breaker-open"));
    }
    let each = begun.elapsed() / REFUSALS as u32;
    shown.refused += refused;
    shown.sent_while_open += arrived(stage, Call::List) - before;
    say!(
        screen,
        "   {REFUSALS} more requests: {refused} refused in {} each; {} reached the directory",
        Rounded(each),
        arrived(stage, Call::List) - before
    );
    stage.emulator.set_faults(Faults::none());
    say!(
        screen,
        "   The directory works again. The breaker stays open for {} (a minute, divided) ...",
        Rounded(OPEN_FOR)
    );
    let before = arrived(stage, Call::List);
    let answer = recovered(stage).await?;
    say!(
        screen,
        "   ... then one request passes as a probe: {} in {}, {} sent. The breaker is closed:",
        answer.status.as_u16(),
        Rounded(answer.took),
        arrived(stage, Call::List) - before
    );
    let answer = stage.caller.get("/hospitals/").await?;
    let count = answer.json.as_array().map_or(0, Vec::len);
    say!(screen, "   the next request: {}, {count} hospitals\n", answer.status.as_u16());
    Ok(())
}

/// Repeats a request until the breaker admits it, and waits as long as each refusal asks for.
async fn recovered(stage: &Fixture) -> Result<Answer, DemoError> {
    let given_up = Instant::now() + OPEN_FOR * 3;
    loop {
        let answer = stage.caller.get("/hospitals/").await?;
        if !answer.is_problem("breaker-open") || Instant::now() > given_up {
            return Ok(answer);
        }
        let wait = answer.json["retry_after_ms"].as_u64().unwrap_or(1_000).min(2_000);
        sleep(Duration::from_millis(wait)).await;
    }
}

fn arrived(stage: &Fixture, call: Call) -> usize {
    stage.emulator.arrivals().iter().filter(|arrival| arrival.call == call).count()
}

async fn replay(stage: &Fixture, screen: &mut impl Write, shown: &mut Shown) -> Result<(), DemoError> {
    say!(screen, "3. The same request twice, with one idempotency key");
    say!(screen, "   The first time the directory creates the hospital and then drops the connection.");
    stage.emulator.set_faults(Faults::none().on(Call::Create, When::First(1), Fault::ResetAfter));
    let hospital = json!({ "name": "Replay Clinic", "address": "1 Twice Street", "creation_batch_id": BATCH });
    let before = stage.emulator.made();
    for time in ["first", "second"] {
        let answer = stage.caller.create("demo-replay-1", &hospital).await?;
        say!(
            screen,
            "   the {time} time: {}, hospital {}, attempts: {}, replay: {}, {}",
            answer.status.as_u16(),
            answer.json["id"],
            answer.header("triage-attempts"),
            if answer.header("triage-replay") == "true" { "yes" } else { "no" },
            Rounded(answer.took)
        );
    }
    shown.asked += 1;
    say!(screen, "   The directory created {} hospital.\n", stage.emulator.made() - before);
    stage.emulator.set_faults(Faults::none());
    Ok(())
}

fn sums(stage: &Fixture, screen: &mut impl Write, shown: &mut Shown, elapsed: Duration) -> Result<(), DemoError> {
    let arrivals = stage.emulator.arrivals();
    shown.hospitals = stage.emulator.hospitals().len();
    shown.duplicates = stage.emulator.duplicates();
    shown.creates_sent = arrived(stage, Call::Create);
    shown.requests_sent = arrivals.len();
    shown.faults = stage.emulator.faults_injected();
    shown.elapsed = elapsed;
    say!(screen, "In total");
    for (name, number) in [
        ("requested rows", shown.asked),
        ("created hospitals", shown.hospitals),
        ("duplicates", shown.duplicates),
        ("attempts to create", shown.creates_sent),
        ("all requests sent, with verifications and probes", shown.requests_sent),
        ("requests with an injected fault", shown.faults as usize),
        ("requests refused by the open breaker", shown.refused),
        ("requests sent while it was open", shown.sent_while_open),
    ] {
        say!(screen, "   {name:<42} {number:>6}");
    }
    say!(screen, "   {:<42} {:>8}", "time", Rounded(elapsed));
    Ok(())
}
