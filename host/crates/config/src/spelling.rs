//! Names in messages: what the operator may have meant, and how a name is written.

use super::value::is_bare;

/// The most similar candidate, if a typing error explains the difference.
pub(super) fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if wanted.len() > 64 {
        return None;
    }
    let scored = candidates.map(|candidate| (strsim::levenshtein(wanted, candidate), candidate));
    let (distance, near) = scored.min_by_key(|(distance, _)| *distance)?;
    (distance <= 1 + wanted.chars().count() / 5).then_some(near)
}

/// A segment as TOML writes it: quoted if necessary.
pub(super) fn shown(segment: &str) -> String {
    let cut: String = segment.chars().take(64).collect();
    if is_bare(segment) && cut.len() == segment.len() { cut } else { format!("{cut:?}") }
}
