//! `--dry-run`: reports what an import would do, without sending requests or changing files.

use super::{
    ImportError, Options, Subject,
    file::JournalFile,
    journal::Start,
    report::counted,
    rows::{self, Row},
    runner,
};
use std::{collections::HashMap, fmt};

/// Maximum duplicate rows to list.
const MAX_LISTED: usize = 50;

/// What an import would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preview {
    /// The host's URL.
    pub to: String,
    /// The number of rows in the file.
    pub rows: usize,
    /// The number of batches.
    pub batches: usize,
    /// Rows that no run has sent.
    pub fresh: usize,
    /// Rows that an earlier run may have sent. The host verifies each before it sends it.
    pub maybe_sent: usize,
    /// Settled rows, which are not sent again.
    pub settled: usize,
    /// Duplicate rows: the row's line, and the line of the first equal row. Each creates its own hospital.
    pub equal: Vec<(u64, u64)>,
    /// Whether each batch is activated after its rows are settled.
    pub activate: bool,
}

/// Reads the file and its journal, in the same way as [`super::run`] before it sends anything.
///
/// # Errors
/// [`ImportError`] if an import could not begin.
pub fn preview(options: &Options) -> Result<Preview, ImportError> {
    let table = rows::parse(&runner::read_csv(&options.file)?)?;
    let path = options.journal_path();
    let past = JournalFile::read_only(&path)?;
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
            "{} to send, {} that may have been sent (verified first), {} settled by an earlier run",
            self.fresh, self.maybe_sent, self.settled
        )?;
        for (line, earlier) in self.equal.iter().take(MAX_LISTED) {
            write!(f, "\nline {line} equals line {earlier}: each line creates its own hospital")?;
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
