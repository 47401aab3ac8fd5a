//! Output of an import: progress while it runs, a table at the end.

use super::{RequestOutcome, Subject};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};
use triage_core::rounded::Rounded;

/// Receives the progress of an import. The default methods do nothing.
pub trait Report {
    /// The file was read: the number of rows, of batches, and of rows that earlier runs settled.
    fn begin(&mut self, _rows: usize, _batches: usize, _settled: usize) {}
    /// A row is settled.
    fn row(&mut self, _line: u64, _outcome: &RequestOutcome) {}
    /// A batch's activation is settled.
    fn batch(&mut self, _number: u32, _activation: &Activation) {}
    /// A request waits before it is repeated.
    fn waiting(&mut self, _what: Subject, _after: Duration, _why: &str) {}
}

/// A [`Report`] without output.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Report for Silent {}

/// The result of a batch's activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Activation {
    /// Activated. The number is how many hospitals became active.
    Done(u64),
    /// Not requested, because this number of rows is unknown or was not sent.
    Withheld(usize),
    /// Not requested, because every row was rejected.
    Empty,
    /// Requested, but it failed or its effect is unknown.
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

/// The result of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowReport {
    /// The line of the CSV file at which the row begins.
    pub line: u64,
    /// The outcome; `Applied` holds the hospital's id.
    pub outcome: RequestOutcome,
}

/// The result of an import. Displayed as a table of rows, followed by totals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Every row in the order of the file.
    pub rows: Vec<RowReport>,
    /// The number of batches.
    pub batches: usize,
    /// The activation of each batch, if requested.
    pub activations: Vec<Activation>,
    /// The duration of this run.
    pub elapsed: Duration,
}

/// The number of rows by outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Rows that created a hospital.
    pub created: usize,
    /// Rows that were rejected permanently.
    pub rejected: usize,
    /// Rows that were never sent.
    pub not_sent: usize,
    /// Rows with unknown effect.
    pub unknown: usize,
}

impl Summary {
    /// Counts the rows by outcome.
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

    /// Whether every row was created and every requested activation done. The exit code is then 0, else 1.
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
        let rows = self.rows.len();
        write!(
            f,
            "{} in {}: {created} created, {rejected} rejected, {not_sent} not sent, {unknown} unknown; {}",
            counted(rows, "row", "rows"),
            counted(self.batches, "batch", "batches"),
            Rounded(self.elapsed)
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

/// Shows a progress bar if standard error is a terminal, else prints lines there.
#[derive(Debug)]
pub struct Terminal {
    bar: Option<ProgressBar>,
}

impl Terminal {
    /// Checks whether standard error is a terminal.
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
        let text = format!("{what} waits {}: {why}", Rounded(after));
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
