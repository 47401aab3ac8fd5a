//! `--dry-run`: what an import would do. Nothing is sent, no file is made or changed.

use super::{
    ImportError, Options, Subject,
    file::JournalFile,
    journal::Start,
    report::counted,
    rows::{self, Row},
    runner,
};
use std::{collections::HashMap, fmt};

/// Equal rows that are listed one by one.
const MAX_LISTED: usize = 50;

/// What an import would do with a file and its journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The host's URL.
    pub to: String,
    /// The rows of the file.
    pub rows: usize,
    /// How many batches they make.
    pub batches: usize,
    /// Rows that no run has sent.
    pub fresh: usize,
    /// Rows that an earlier run may have sent: the host looks for each before it sends it.
    pub maybe_sent: usize,
    /// Rows that are settled: they are not sent again.
    pub settled: usize,
    /// Rows that equal an earlier one: their line, and the line of the first of them. Each makes a hospital of its own.
    pub equal: Vec<(u64, u64)>,
    /// Whether each batch is activated once its rows are known.
    pub activate: bool,
}

/// Reads the file and its journal, as [`super::run`] does before it sends anything.
///
/// # Errors
/// [`ImportError`] where an import could not begin.
pub fn preview(options: &Options) -> Result<Preview, ImportError> {
    let table = rows::parse(&runner::read_csv(&options.file)?)?;
    let path = options.journal_path();
    let past = JournalFile::look(&path)?;
    let to = options.to.to_string();
    let batch_size = usize::from(runner::check_head(&past, &table, &to, options, &path)?);
    let mut preview = Preview {
        to,
        rows: table.rows.len(),
        batches: table.rows.len().div_ceil(batch_size),
        fresh: 0,
        maybe_sent: 0,
        settled: 0,
        equal: equal(&table.rows),
        activate: options.activate,
    };
    for row in &table.rows {
        match past.start(Subject::Line(row.line)) {
            Start::Settled(_) => preview.settled += 1,
            Start::Again { maybe_sent: true, .. } => preview.maybe_sent += 1,
            Start::Fresh | Start::Again { .. } => preview.fresh += 1,
        }
    }
    Ok(preview)
}

fn equal(rows: &[Row]) -> Vec<(u64, u64)> {
    let mut first = HashMap::new();
    let mut equal = Vec::new();
    for Row { line, name, address, phone } in rows {
        let earlier = *first.entry((name, address, phone)).or_insert(*line);
        if earlier != *line {
            equal.push((*line, earlier));
        }
    }
    equal
}

impl fmt::Display for Preview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (rows, batches) = (counted(self.rows, "row", "rows"), counted(self.batches, "batch", "batches"));
        writeln!(f, "{rows} in {batches}, to {}", self.to)?;
        write!(
            f,
            "{} to send, {} that may have been sent (looked up first), {} settled by an earlier run",
            self.fresh, self.maybe_sent, self.settled
        )?;
        for (line, earlier) in self.equal.iter().take(MAX_LISTED) {
            write!(f, "\nline {line} equals line {earlier}: each makes a hospital of its own")?;
        }
        if self.equal.len() > MAX_LISTED {
            write!(f, "\nand {} more equal rows", self.equal.len() - MAX_LISTED)?;
        }
        if self.activate {
            write!(f, "\nEach batch is activated once all of its rows are known.")?;
        }
        write!(f, "\nDry run: nothing was sent.")
    }
}
