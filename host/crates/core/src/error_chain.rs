//! The text of an error with its causes.

use std::error::Error;

/// The maximum length of the text: a component or a server can influence its wording.
const MAX_CHARS: usize = 4000;

/// Joins the texts of an error and of its causes on one line, without repetitions: a transparent wrapper has the text of its cause. Control
/// characters become spaces: a terminal would follow them.
pub fn error_chain(error: &dyn Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for text in std::iter::successors(Some(error), |&link| link.source()).map(ToString::to_string) {
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
    }
    let joined = parts.join(": ").replace(|c: char| c.is_control(), " ");
    joined.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("the file cannot\n be read")]
        Read(#[source] io::Error),
        #[error(transparent)]
        Same(#[from] io::Error),
    }

    #[test]
    fn causes_are_joined_on_one_line_of_limited_length() {
        let cause = || io::Error::other("no such file");
        assert_eq!(error_chain(&Outer::Read(cause())), "the file cannot be read: no such file");
        assert_eq!(error_chain(&Outer::Same(cause())), "no such file");
        assert_eq!(error_chain(&io::Error::other("red\u{1b}[31m")), "red [31m");
        assert_eq!(error_chain(&io::Error::other("x".repeat(MAX_CHARS + 1))).len(), MAX_CHARS);
    }
}
