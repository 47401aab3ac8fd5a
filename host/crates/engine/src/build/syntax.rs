//! Parses a JavaScript or Python policy before it is packed. The language's own program says where the mistake is; the builders say it
//! late, or only in the traceback of their own code.

use crate::guest_language::Language;
use std::{path::Path, process::Command};

/// Prints a syntax error as Python does, with line and caret, and writes no file.
const PYTHON: &str = "import sys, traceback
try:
    compile(open(sys.argv[1], 'rb').read(), sys.argv[1], 'exec')
except SyntaxError as error:
    sys.stderr.write(''.join(traceback.format_exception_only(type(error), error)))
    sys.exit(1)
";

/// The maximum length of an error. A line of a generated file may be very long.
const MAX_ERROR_CHARS: usize = 2000;

/// The syntax error of the policy in a folder: file, line, the line's text with a caret, and what is wrong. None if it parses, or if the
/// language's program cannot be run; the builder then says so.
pub(super) fn error(language: Language, dir: &Path, mut program: Command) -> Option<String> {
    match language {
        Language::Rust => return None,
        Language::JavaScript => program.args(["--check", language.source()]),
        Language::Python => program.args(["-c", PYTHON, language.source()]),
    };
    let output = program.current_dir(dir).output().ok()?;
    if output.status.success() {
        return None;
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // Node.js goes on with a stack of its own functions and its version.
    let own = |line: &&str| !line.starts_with("    at ") && !line.starts_with("Node.js ");
    let lines: Vec<&str> = said.trim_end().lines().take_while(own).collect();
    let folder = format!("file://{}/", dir.display());
    let text = lines.join("\n").trim_end().replace(&folder, "").replace(&format!("{}/", dir.display()), "");
    Some(text.chars().take(MAX_ERROR_CHARS).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    fn parsed(language: Language, program: &str, source: &str) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("package.json"), "{\"type\": \"module\"}").unwrap();
        fs::write(folder.path().join(language.source()), source).unwrap();
        error(language, &folder.path().canonicalize().unwrap(), Command::new(program))
    }

    #[test]
    fn a_syntax_error_names_file_and_line_with_a_caret() {
        if Command::new("node").arg("--version").output().is_err() {
            return;
        }
        assert_eq!(parsed(Language::JavaScript, "node", "export const a = 1;\n"), None);
        let told = parsed(Language::JavaScript, "node", "export const a = 1;\nconst b = ;\n").unwrap();
        assert_eq!(told, "policy.js:2\nconst b = ;\n          ^\n\nSyntaxError: Unexpected token ';'");
    }

    #[test]
    fn a_python_syntax_error_names_file_and_line_with_a_caret() {
        if Command::new("python3").arg("--version").output().is_err() {
            return;
        }
        assert_eq!(parsed(Language::Python, "python3", "a = 1\n"), None);
        let told = parsed(Language::Python, "python3", "a = 1\nb = (\n").unwrap();
        assert_eq!(told, "  File \"policy.py\", line 2\n    b = (\n        ^\nSyntaxError: '(' was never closed");
        let told = parsed(Language::Python, "python3", "  a = 1\n").unwrap();
        assert!(told.ends_with("IndentationError: unexpected indent"), "{told}");
    }

    #[test]
    fn a_program_that_is_missing_is_left_to_the_builder() {
        assert_eq!(parsed(Language::Python, "no-such-program", "("), None);
    }
}
