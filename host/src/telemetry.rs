//! What the host tells of itself: recent events, metrics, and the course of single requests.
//!
//! Nothing in here holds a body, a header's value or a path's parameter: hospital data is confidential.

mod events;

pub use events::{Event, Events};
