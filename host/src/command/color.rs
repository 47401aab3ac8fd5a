//! Whether output is coloured: `--color`, else `NO_COLOR`, else whether it goes to a terminal.

use clap::ColorChoice;
use std::io::{self, IsTerminal as _};

/// Decides for standard output and standard error, also for the progress bar of an import. Returns whether log lines are coloured.
pub fn decide(choice: ColorChoice) -> bool {
    let refused = super::variable("NO_COLOR").is_some() || super::variable("TERM").is_some_and(|term| term == "dumb");
    console::set_colors_enabled(is_colored(choice, refused, io::stdout().is_terminal()));
    let of_log = is_colored(choice, refused, io::stderr().is_terminal());
    console::set_colors_enabled_stderr(of_log);
    of_log
}

/// `refused`: the environment asks for no colours. An option on the command line goes over the environment.
fn is_colored(choice: ColorChoice, refused: bool, is_terminal: bool) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => is_terminal && !refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_goes_over_the_environment_and_that_over_the_terminal() {
        for (choice, refused, is_terminal, expected) in [
            (ColorChoice::Auto, false, true, true),
            (ColorChoice::Auto, false, false, false),
            (ColorChoice::Auto, true, true, false),
            (ColorChoice::Always, true, false, true),
            (ColorChoice::Never, false, true, false),
        ] {
            assert_eq!(is_colored(choice, refused, is_terminal), expected, "{choice:?} {refused} {is_terminal}");
        }
    }
}
