//! `triage import`: a CSV file of hospitals, sent through a host so that every row is made once.
//!
//! Every row gets an idempotency key, and every batch its id, once; both are journalled and synced before the first byte is
//! sent. After a crash the same command goes on with the same keys, and tells the host which rows may have been sent before
//! (`Triage-Maybe-Sent`): those begin in Reconcile, not in a second send. A batch is activated only when each of its rows is
//! known to be made or rejected.
//!
//! `rows` reads the file, `journal` folds what earlier runs wrote, `answer` reads what the host says and `asking` decides what to
//! do next: all pure. `work` does it; `preview` only says what would be done.

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
pub use retry_state::{Patience, RequestOutcome};
pub use rows::{MAX_ROWS, Row, RowProblems, Table, parse};

use crate::{
    clock::Clock,
    rng::Rng,
    upstream::{self, HttpClient, Transport, TransportError},
};
use std::{io, path::PathBuf, sync::Arc};

/// What to import, and through which host.
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

    /// Where the journal is.
    pub fn journal_path(&self) -> PathBuf {
        self.journal.clone().unwrap_or_else(|| {
            let mut name = self.file.as_os_str().to_owned();
            name.push(".journal");
            name.into()
        })
    }
}

/// Why an import could not be done. What was sent until then is in the journal.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The CSV file cannot be read.
    #[error("{} could not be read; name a CSV file with the columns name,address,phone", path.display())]
    Csv {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Rows are bad.
    #[error(transparent)]
    Rows(#[from] RowProblems),
    /// The journal cannot be opened or written.
    #[error("the journal {} could not be used; nothing is sent without it: mend that, then run the same command again", path.display())]
    Journal {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The journal says something else than a journal of ours would.
    #[error("the journal {} was refused", path.display())]
    BadJournal {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: JournalError,
    },
    /// Another import runs on it.
    #[error("the journal {} is in use by another import; wait for that to end", .0.display())]
    Locked(PathBuf),
    /// The journal belongs to other contents.
    #[error("the journal {} belongs to another CSV file, or this one was changed since; restore it, or name another journal with --journal", .0.display())]
    OtherFile(PathBuf),
    /// The journal belongs to another host.
    #[error("the journal {} belongs to an import to {was}, not to {is}; import to the same url, or name another journal with --journal", path.display())]
    OtherHost {
        /// The file.
        path: PathBuf,
        /// What it says.
        was: String,
        /// What was asked.
        is: String,
    },
    /// The journal was begun with another size.
    #[error("the journal {} was begun with batches of {was}, not {is}; leave --batch-size out to go on", path.display())]
    OtherBatchSize {
        /// The file.
        path: PathBuf,
        /// What it says.
        was: u8,
        /// What was asked.
        is: u8,
    },
    /// The host cannot be called.
    #[error("the host cannot be called")]
    Transport(#[from] TransportError),
    /// Nobody answers there.
    #[error("{0} does not answer ({1}); start the host with `triage serve`, then run the same command again")]
    NoHost(String, &'static str),
    /// Somebody else answers there.
    #[error(
        "{0} answers, but is no triage host; without one, rows could be made twice: name the host's url, not the hospital API's"
    )]
    NotTriage(String),
}

/// The surroundings of an import, which tests replace.
#[derive(Debug, Clone)]
pub struct Context {
    /// The way to the host.
    pub transport: Arc<dyn Transport>,
    /// Chance, for keys and waits.
    pub entropy: Rng,
    /// The clock, for dates in `Retry-After`.
    pub clock: Clock,
    /// How often requests are asked again.
    pub patience: Patience,
}

impl Context {
    /// The real ones.
    ///
    /// # Errors
    /// [`ImportError::Transport`] where the host's URL cannot be called.
    pub fn real(options: &Options) -> Result<Self, ImportError> {
        let transport = HttpClient::new(&upstream::Settings::new(options.to.clone()))?;
        Ok(Self {
            transport: Arc::new(transport),
            entropy: Rng::system(),
            clock: Clock::system(),
            patience: Patience::default(),
        })
    }
}

/// Imports a file, or goes on where an earlier run ended.
///
/// # Errors
/// [`ImportError`] where it cannot begin, or the journal cannot be written. Rows that end otherwise than created are no error,
/// they stand in the [`Summary`].
pub async fn run(options: &Options, report: &mut impl Report) -> Result<Summary, ImportError> {
    let surroundings = Context::real(options)?;
    run_in(surroundings, options, report).await
}

/// [`run`] in surroundings of the caller's choice.
///
/// # Errors
/// As [`run`].
pub async fn run_in(
    surroundings: Context,
    options: &Options,
    report: &mut impl Report,
) -> Result<Summary, ImportError> {
    runner::Work::prepare(surroundings, options)?.run(report).await
}
