//! The hospital directory: an emulator of its API for tests and the demo, and the import of a file of hospitals through Triage.
//!
//! | module | does |
//! |---|---|
//! | [`emulator`] | answers as the directory does, with its limits, late commits and faults that a test chooses |
//! | [`import`] | sends the rows of a CSV file once each, and continues after an interruption |

pub mod emulator;
pub mod import;

use triage_core::{clock, contract, rng};
use triage_problem as error;
use triage_upstream as upstream;
