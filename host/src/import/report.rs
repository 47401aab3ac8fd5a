//! What the caller sees: progress while it runs, a table at the end.

use super::{RequestOutcome, Subject};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

/// Told what happens, as it happens. Does nothing unless implemented.
pub trait Report {
    /// The file is read: so many rows in so many batches, of which so many rows were settled by earlier runs.
    fn begin(&mut self, _rows: usize, _batches: usize, _settled: usize) {}
    /// A row is settled.
    fn row(&mut self, _line: u64, _outcome: &RequestOutcome) {}
    /// A batch's activation is settled.
    fn batch(&mut self, _number: u32, _activation: &Activation) {}
    /// A request waits before it is asked again.
    fn waiting(&mut self, _what: Subject, _after: Duration, _why: &str) {}
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Report for Silent {}

/// How the activation of a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activation {
    /// Done: so many hospitals became active.
    Done(u64),
    /// Not asked for: so many of its rows are unknown or not sent.
    Withheld(usize),
    /// Not asked for: every row was rejected.
    Empty,
    /// Asked for, and not done, or perhaps not.
    Failed(RequestOutcome),
}

impl From<RequestOutcome> for Activation {
    fn from(outcome: RequestOutcome) -> Self {
        match outcome {
            RequestOutcome::Applied(count) => Self::Done(count),
            failed => Self::Failed(failed),
        }
    }
}

/// How one row ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowReport {
    /// Where the row begins in the CSV file.
    pub line: u64,
    /// How it ended; an `Applied` number is the hospital's id.
    pub outcome: RequestOutcome,
}

/// How an import ended. Displayed as a table of rows, then the totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Every row, in the order of the file.
    pub rows: Vec<RowReport>,
    /// How many batches the rows make.
    pub batches: usize,
    /// The activation of each batch, if activation was asked for.
    pub activations: Vec<Activation>,
    /// How long this run took.
    pub elapsed: Duration,
}

/// How many rows ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows that are hospitals now.
    pub created: usize,
    /// Rows refused for good.
    pub rejected: usize,
    /// Rows of which nothing was sent.
    pub not_sent: usize,
    /// Rows that may or may not be hospitals.
    pub unknown: usize,
}

impl Summary {
    /// The sums.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for row in &self.rows {
            match row.outcome {
                RequestOutcome::Applied(_) => totals.created += 1,
                RequestOutcome::Rejected(_) => totals.rejected += 1,
                RequestOutcome::NotSent(_) => totals.not_sent += 1,
                RequestOutcome::Unknown(_) => totals.unknown += 1,
            }
        }
        totals
    }

    /// Whether every row was created and every batch activated that should be: the exit code is 0 then, else 1.
    pub fn complete(&self) -> bool {
        let created = self.rows.iter().all(|row| matches!(row.outcome, RequestOutcome::Applied(_)));
        created && self.activations.iter().all(|activation| matches!(activation, Activation::Done(_)))
    }
}

impl fmt::Display for RequestOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Applied(id) => write!(f, "created   id {id}"),
            Self::Rejected(why) => write!(f, "rejected  {why}"),
            Self::NotSent(why) => write!(f, "not sent  {why}"),
            Self::Unknown(why) => write!(f, "unknown   {why}"),
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(1) => write!(f, "activated, 1 hospital"),
            Self::Done(count) => write!(f, "activated, {count} hospitals"),
            Self::Withheld(1) => write!(f, "not activated: 1 of its rows is not settled"),
            Self::Withheld(rows) => write!(f, "not activated: {rows} of its rows are not settled"),
            Self::Empty => write!(f, "not activated: every row was rejected"),
            Self::Failed(RequestOutcome::Unknown(why)) => write!(f, "may or may not be activated: {why}"),
            Self::Failed(RequestOutcome::Rejected(why) | RequestOutcome::NotSent(why)) => {
                write!(f, "not activated: {why}")
            }
            Self::Failed(RequestOutcome::Applied(_)) => write!(f, "activated"),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, " line  result")?;
        for row in &self.rows {
            writeln!(f, "{:>5}  {}", row.line, row.outcome)?;
        }
        for (number, activation) in self.activations.iter().enumerate() {
            writeln!(f, "batch {}: {activation}", number + 1)?;
        }
        let Totals { created, rejected, not_sent, unknown } = self.totals();
        let (rows, seconds) = (self.rows.len(), self.elapsed.as_secs_f64());
        write!(
            f,
            "{} in {}: {created} created, {rejected} rejected, {not_sent} not sent, {unknown} unknown; {seconds:.1} s",
            counted(rows, "row", "rows"),
            counted(self.batches, "batch", "batches")
        )?;
        if not_sent + unknown > 0 {
            write!(f, "\nRun the same command again to settle the rest; the journal keeps the keys.")?;
        }
        Ok(())
    }
}

pub(super) fn counted(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// A progress bar where standard error is a terminal, else plain lines there.
#[derive(Debug)]
pub struct Terminal {
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// Looks at standard error.
    pub fn new() -> Self {
        Self { bar: io::stderr().is_terminal().then(ProgressBar::no_length) }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // A closed standard error must not end an import.
            None => drop(writeln!(io::stderr(), "{text}")),
        }
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Report for Terminal {
    fn begin(&mut self, rows: usize, batches: usize, settled: usize) {
        if let Some(bar) = &self.bar {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} rows  {elapsed}  {wide_msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_length(rows as u64);
            bar.set_position(settled as u64);
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        let before = if settled == 0 { String::new() } else { format!(", {settled} settled by an earlier run") };
        let (rows, batches) = (counted(rows, "row", "rows"), counted(batches, "batch", "batches"));
        self.say(&format!("{rows} in {batches}{before}"));
    }

    fn row(&mut self, line: u64, outcome: &RequestOutcome) {
        match &self.bar {
            Some(bar) => bar.inc(1),
            None => self.say(&format!("line {line}: {outcome}")),
        }
        if let (Some(_), RequestOutcome::Rejected(_) | RequestOutcome::NotSent(_) | RequestOutcome::Unknown(_)) =
            (&self.bar, outcome)
        {
            self.say(&format!("line {line}: {outcome}"));
        }
    }

    fn batch(&mut self, number: u32, activation: &Activation) {
        self.say(&format!("batch {}: {activation}", number + 1));
    }

    fn waiting(&mut self, what: Subject, after: Duration, why: &str) {
        let what = match what {
            Subject::Line(line) => format!("line {line}"),
            Subject::Activation(batch) => format!("activation of batch {}", batch + 1),
        };
        let text = format!("{what} waits {:.1} s: {why}", after.as_secs_f64());
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => self.say(&text),
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
