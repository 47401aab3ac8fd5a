//! How a command shows what a running host answers: a table or JSON, once or again and again.

use super::{
    Stops,
    remote::{Remote, with_hint},
    runtime,
};
use anyhow::Result;
use console::{Term, measure_text_width, style};
use serde_json::Value;
use std::{
    fmt::{self, Write as _},
    io::{self, ErrorKind, Write as _},
    time::Duration,
};
use tokio::time::sleep;
use triage_admin::{ClientError, Shape};

/// The options of commands that show a host's present state.
#[derive(Debug, clap::Args)]
pub struct Output {
    /// Print the JSON of the admin API, each answer on one line
    #[arg(long)]
    pub json: bool,
    /// Repeat until Ctrl-C; a terminal is redrawn, other output is appended to
    #[arg(long)]
    pub watch: bool,
    /// Time between two answers of --watch
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval, requires = "watch")]
    pub interval: Duration,
    #[command(flatten)]
    pub remote: Remote,
}

/// A host limits the requests to its admin listener.
const MIN_INTERVAL: Duration = Duration::from_millis(100);
const MAX_INTERVAL: Duration = Duration::from_hours(1);

fn interval(text: &str) -> Result<Duration, String> {
    let time = triage_config::duration(text)?;
    if (MIN_INTERVAL..=MAX_INTERVAL).contains(&time) {
        Ok(time)
    } else {
        Err(format!("{text} must be from 100ms to 1h"))
    }
}

impl Output {
    /// Prints the answer at a path. `table` makes the text for people. Returns the answer; none after `--watch`.
    pub fn show(&self, path: &str, shape: Shape, table: impl Fn(&Value) -> String) -> Result<Option<Value>> {
        let client = self.remote.client()?;
        let lines = |answer: &Value| if self.json { format!("{answer}\n") } else { table(answer) };
        if !self.watch {
            let answer = runtime()?.block_on(client.get(path, shape)).map_err(with_hint)?;
            print(&lines(&answer))?;
            return Ok(Some(answer));
        }
        let mut screen = Screen::new(!self.json);
        let poll = async |screen: &mut Screen| {
            let answer = client.get(path, shape).await.map_err(with_hint)?;
            Ok(screen.show(&lines(&answer))?)
        };
        runtime()?.block_on(repeat(self.interval, &mut screen, poll))?;
        Ok(None)
    }
}

/// Prints to standard output. A reader that has gone, such as `head`, is no failure.
pub fn print(text: &str) -> io::Result<()> {
    match write(text) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Why a poll failed.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    #[error(transparent)]
    Host(#[from] ClientError),
    #[error("standard output cannot be written: {0}")]
    Output(#[from] io::Error),
}

/// Polls until Ctrl-C, or until the reader of standard output has gone. An error of the first poll ends it. A later error of the host is
/// reported once, and the poll repeated.
pub async fn repeat(
    interval: Duration,
    screen: &mut Screen,
    mut poll: impl AsyncFnMut(&mut Screen) -> Result<(), PollError>,
) -> Result<()> {
    let mut stops = Stops::listen()?;
    let (mut has_answered, mut is_failing) = (false, false);
    loop {
        let polled = tokio::select! {
            polled = poll(screen) => polled,
            stopped = stops.next() => return stopped,
        };
        match polled {
            Ok(()) => (has_answered, is_failing) = (true, false),
            Err(PollError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(PollError::Host(error)) if has_answered => {
                if !std::mem::replace(&mut is_failing, true) {
                    screen.failed(&error)?;
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::select! {
            () = sleep(interval) => {}
            stopped = stops.next() => return stopped,
        }
    }
}

/// Where the answers of `--watch` go: a terminal shows the latest one, other output gets one after the other.
pub struct Screen {
    /// The terminal that is redrawn.
    terminal: Option<Term>,
    shown: String,
}

impl Screen {
    /// `redraws`: a terminal shows only the latest answer.
    pub fn new(redraws: bool) -> Self {
        let is_dumb = super::variable("TERM").is_none_or(|term| term == "dumb");
        let terminal = Some(Term::stdout()).filter(|term| redraws && !is_dumb && term.is_term());
        Self { terminal, shown: String::new() }
    }

    /// Shows an answer.
    pub fn show(&mut self, lines: &str) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return write(lines) };
        write(&frame(lines, terminal.size_checked()))?;
        lines.clone_into(&mut self.shown);
        Ok(())
    }

    /// Says that a poll failed. The last answer stays on a terminal, marked as old.
    pub fn failed(&mut self, error: &impl fmt::Display) -> io::Result<()> {
        let text = format!("a poll failed, and the watch continues: {error}\n");
        let Some(terminal) = &self.terminal else {
            eprint!("{text}");
            return Ok(());
        };
        write(&frame(&format!("{}{}", style(text).red(), self.shown), terminal.size_checked()))
    }
}

/// The text that replaces a terminal's contents with the first lines, as many as it has room for. `size`: rows and columns.
fn frame(lines: &str, size: Option<(u16, u16)>) -> String {
    const HOME: &str = "\u{1b}[H";
    const CLEAR_LINE: &str = "\u{1b}[K";
    const CLEAR_BELOW: &str = "\u{1b}[J";
    let (rows, columns) = size.map_or((usize::MAX, usize::MAX), |(rows, columns)| (rows.into(), columns.into()));
    // Leaves a row for the cursor.
    let mut left = rows.saturating_sub(1);
    let mut text = HOME.to_owned();
    let all: Vec<&str> = lines.lines().collect();
    for (index, line) in all.iter().enumerate() {
        let takes = measure_text_width(line).div_ceil(columns.max(1)).max(1);
        let is_last = index + 1 == all.len();
        if takes > left || (takes == left && !is_last) {
            let _ = write!(text, "and {} more lines{CLEAR_LINE}\r\n", all.len() - index);
            break;
        }
        left -= takes;
        let _ = write!(text, "{line}{CLEAR_LINE}\r\n");
    }
    text + CLEAR_BELOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_holds_what_the_terminal_has_room_for() {
        let drawn = |size| frame("one\ntwo\nthree\n", size).replace("\u{1b}[K\r\n", "|");
        assert_eq!(drawn(None), "\u{1b}[Hone|two|three|\u{1b}[J");
        assert_eq!(drawn(Some((4, 80))), "\u{1b}[Hone|two|three|\u{1b}[J");
        assert_eq!(drawn(Some((3, 80))), "\u{1b}[Hone|and 2 more lines|\u{1b}[J");
        assert_eq!(drawn(Some((4, 4))), "\u{1b}[Hone|two|and 1 more lines|\u{1b}[J", "the third takes two rows");
    }

    #[test]
    fn an_interval_is_bounded() {
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(interval("1ms"), Err("1ms must be from 100ms to 1h".to_owned()));
        assert!(interval("2").is_err());
    }
}
