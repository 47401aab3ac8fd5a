//! `triage import`: sends a CSV file of hospitals through a host, so that every row is created exactly once.
//!
//! Each row gets one idempotency key, and each batch one id. Both are written to the journal and synced before the first byte is sent.
//! After a crash the same command resumes with the same keys and marks rows that may already have been sent (`Triage-Maybe-Sent`). The host
//! verifies such a row before it sends it. A batch is activated only when each of its rows is known to be created or rejected.
//!
//! `rows` parses the file, `journal` folds the lines of earlier runs, `response` interprets the host's responses and `retry_state` decides
//! on the next step; all four are pure. `runner` performs the import, and `preview` only reports what it would do.

mod file;
mod journal;
mod preview;
mod report;
mod response;
mod retry_state;
mod rows;
mod runner;
#[cfg(test)]
mod tests;

pub use journal::{JournalError, Subject};
pub use preview::{Preview, preview};
pub use report::{Activation, Report, RowReport, Silent, Summary, Terminal, Totals};
pub use retry_state::{RequestOutcome, RetryLimits};
pub use rows::{MAX_ROWS, Row, RowProblems, Table, parse};

use crate::{
    clock::Clock,
    rng::Rng,
    upstream::{self, HttpClient, Transport, TransportError},
};
use std::{io, path::PathBuf, sync::Arc};

/// The options of an import.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Options {
    /// The CSV file, with the columns name, address and (optional) phone.
    pub file: PathBuf,
    /// The host's URL (a running `triage serve`, not the hospital API itself).
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    pub to: http::Uri,
    /// The journal. Default: beside the CSV file, its name with `.journal` after it.
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// Hospitals in a batch, 1 to 20. Default 20, the directory's own cap; a journal keeps what it was begun with.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=20))]
    pub batch_size: Option<u8>,
    /// Activate each batch once all of its rows are known.
    #[arg(long)]
    pub activate: bool,
    /// Rows under way at once, 1 to 100. Default 20: a whole batch in one wave.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub concurrency: u8,
}

impl Options {
    /// The defaults for a file and a host.
    pub fn new(file: impl Into<PathBuf>, to: http::Uri) -> Self {
        Self { file: file.into(), to, journal: None, batch_size: None, activate: false, concurrency: 20 }
    }

    /// The journal's path.
    pub fn journal_path(&self) -> PathBuf {
        self.journal.clone().unwrap_or_else(|| {
            let mut name = self.file.as_os_str().to_owned();
            name.push(".journal");
            name.into()
        })
    }
}

/// Why an import failed. The journal holds what was sent until then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The CSV file cannot be read.
    #[error("{} could not be read; name a CSV file with the columns name,address,phone", path.display())]
    Csv {
        /// The file's path.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// Rows of the CSV file are invalid.
    #[error(transparent)]
    Rows(#[from] RowProblems),
    /// The journal cannot be opened or written.
    #[error("the journal {} could not be used, and the import sends nothing without it: correct that, then run the \
             same command again", path.display())]
    Journal {
        /// The journal's path.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        source: io::Error,
    },
    /// The journal is damaged or has another format.
    #[error("the journal {} is not usable", path.display())]
    BadJournal {
        /// The journal's path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: JournalError,
    },
    /// Another import uses the journal.
    #[error("the journal {} is in use by another import; wait for its end", .0.display())]
    Locked(PathBuf),
    /// The journal belongs to another CSV file.
    #[error("the journal {} belongs to another CSV file, or this file was changed since; restore the file, or name \
             another journal with --journal", .0.display())]
    OtherFile(PathBuf),
    /// The journal belongs to another host.
    #[error("the journal {} belongs to an import to {was}, not to {is}; import to the same url, or name another journal with --journal", path.display())]
    OtherHost {
        /// The journal's path.
        path: PathBuf,
        /// The host in the journal.
        was: String,
        /// The host of this import.
        is: String,
    },
    /// The journal was begun with another batch size.
    #[error("the journal {} was begun with batches of {was}, not {is}; leave --batch-size out to continue", path.display())]
    OtherBatchSize {
        /// The journal's path.
        path: PathBuf,
        /// The batch size in the journal.
        was: u8,
        /// The batch size of this import.
        is: u8,
    },
    /// The HTTP client could not be created.
    #[error("the host cannot be called")]
    Transport(#[from] TransportError),
    /// The host does not respond: its URL and the kind of failure.
    #[error("{0} does not answer ({1}); start the host with `triage serve`, then run the same command again")]
    NoHost(String, &'static str),
    /// The server at the URL is not a Triage host.
    #[error(
        "{0} answers, but is not a Triage host; without Triage, rows could be created twice: name the host's url, not \
         the hospital API's"
    )]
    NotTriage(String),
}

/// The environment of an import, which tests replace.
#[derive(Debug, Clone)]
pub struct Context {
    /// Sends requests to the host.
    pub transport: Arc<dyn Transport>,
    /// Random numbers for keys and waits.
    pub entropy: Rng,
    /// The clock, for dates in `Retry-After`.
    pub clock: Clock,
    /// How often requests are repeated.
    pub retry_limits: RetryLimits,
}

impl Context {
    /// The environment of the process.
    ///
    /// # Errors
    /// [`ImportError::Transport`] if no client can be created for the host's URL.
    pub fn real(options: &Options) -> Result<Self, ImportError> {
        let transport = HttpClient::new(&upstream::Settings::new(options.to.clone()))?;
        Ok(Self {
            transport: Arc::new(transport),
            entropy: Rng::system(),
            clock: Clock::system(),
            retry_limits: RetryLimits::default(),
        })
    }
}

/// Imports a file, or resumes an earlier run.
///
/// # Errors
/// [`ImportError`] if the import cannot begin or the journal cannot be written. Rows that could not be created are no error; the
/// [`Summary`] reports them.
pub async fn run(options: &Options, report: &mut impl Report) -> Result<Summary, ImportError> {
    let context = Context::real(options)?;
    run_in(context, options, report).await
}

/// [`run`] in an environment of the caller's choice.
///
/// # Errors
/// As [`run`].
pub async fn run_in(context: Context, options: &Options, report: &mut impl Report) -> Result<Summary, ImportError> {
    runner::Work::prepare(context, options)?.run(report).await
}
