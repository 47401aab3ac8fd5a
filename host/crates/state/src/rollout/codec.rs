//! The format of a [`FleetState`] in shared state and in a file: seven words. Words of any other form are rejected.

use super::{
    FleetState, PolicyRef, Why,
    protocol::{MAX_GENERATION, MAX_QUARANTINED},
};
use crate::digest::Digest;

/// Maximum length of a host's name.
const MAX_NAME_BYTES: usize = 64;

impl FleetState {
    /// The seven words: line, generation, chosen, before, why, by, quarantined.
    pub fn words(&self) -> [String; 7] {
        let quarantined: Vec<String> = self.quarantined.iter().map(ToString::to_string).collect();
        [
            format!("{:016x}", self.line),
            self.generation.to_string(),
            self.chosen.word(),
            self.before.map_or_else(|| "-".to_owned(), PolicyRef::word),
            self.why.word().to_owned(),
            self.by.clone(),
            quarantined.join(" "),
        ]
    }

    /// Parses the words; `None` if one is invalid.
    pub fn read(words: &[&str]) -> Option<Self> {
        // If the words are the lines of a file, an empty last word is missing.
        let (words, quarantined) = match words {
            [words @ .., quarantined] if words.len() == 6 => (words, *quarantined),
            words => (words, ""),
        };
        let [line, generation, chosen, before, why, by] = words else { return None };
        let quarantined: Option<Vec<Digest>> =
            quarantined.split(' ').filter(|digest| !digest.is_empty()).map(|digest| digest.parse().ok()).collect();
        Some(Self {
            line: Some(line).filter(|line| line.len() == 16).and_then(|line| u64::from_str_radix(line, 16).ok())?,
            generation: generation.parse().ok().filter(|generation| *generation <= MAX_GENERATION)?,
            chosen: PolicyRef::read(chosen)?,
            before: if *before == "-" { None } else { Some(PolicyRef::read(before)?) },
            why: why.parse().ok()?,
            by: Some(*by).filter(|by| by.is_empty() || is_name(by))?.to_owned(),
            quarantined: quarantined.filter(|all| all.len() <= MAX_QUARANTINED)?,
        })
    }
}

impl PolicyRef {
    /// The text that shared state keeps for it: empty for the configured policy.
    pub fn word(self) -> String {
        match self {
            Self::Configured => String::new(),
            Self::Artifact(digest) => digest.to_string(),
        }
    }

    fn read(word: &str) -> Option<Self> {
        if word.is_empty() { Some(Self::Configured) } else { word.parse().ok().map(Self::Artifact) }
    }
}

impl Why {
    /// The word for the cause.
    pub fn word(self) -> &'static str {
        self.into()
    }
}

/// Whether a word is a valid name of a host.
pub fn is_name(word: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=MAX_NAME_BYTES).contains(&word.len()) && word.bytes().all(fits)
}
