//! Parses the CSV file and checks every row before anything is sent. Pure.

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// Maximum rows of a file: as many hospitals as the directory stores.
pub const MAX_ROWS: usize = 10_000;
/// Maximum characters of a field.
const MAX_FIELD_CHARS: usize = 1_000;
/// Maximum problems to list.
const MAX_LISTED: usize = 50;

/// A hospital to create.
#[derive(Clone, PartialEq, Eq)]
pub struct Row {
    /// The line at which the row begins, counted from 1 with the header.
    pub line: u64,
    /// The hospital's name, not blank.
    pub name: String,
    /// The hospital's address, not blank.
    pub address: String,
    /// The hospital's phone number, unless blank.
    pub phone: Option<String>,
}

/// Shows only the line, because rows may be confidential.
impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("line", &self.line).finish_non_exhaustive()
    }
}

/// The rows of a file, with the file's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// At least one row, in the order of the file.
    pub rows: Vec<Row>,
    /// SHA-256 of the file's bytes, in hexadecimal.
    pub digest: String,
    /// Whether a line ends with CR alone, which version 1 of the journal did not count.
    pub has_lone_cr: bool,
}

/// Every problem of a file with its line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowProblems(Vec<(u64, String)>);

impl fmt::Display for RowProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the file has {} bad row{}; nothing was sent",
            self.0.len(),
            if self.0.len() == 1 { "" } else { "s" }
        )?;
        for (line, problem) in self.0.iter().take(MAX_LISTED) {
            write!(f, "\n  line {line}: {problem}")?;
        }
        if self.0.len() > MAX_LISTED {
            write!(f, "\n  and {} more", self.0.len() - MAX_LISTED)?;
        }
        Ok(())
    }
}

impl std::error::Error for RowProblems {}

/// Parses a file with the columns `name`, `address` and (optional) `phone`, in any order.
///
/// # Errors
/// [`RowProblems`] with every problem.
pub fn parse(bytes: &[u8]) -> Result<Table, RowProblems> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text);
    let columns = Columns::find(reader.byte_headers()).map_err(|problem| RowProblems(vec![(1, problem)]))?;
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    let mut lines = Lines { text, at: 0, line: 1 };
    for record in reader.byte_records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                problems.push((lines.find(error.position()), "the row cannot be read".to_owned()));
                break;
            }
        };
        let line = lines.find(record.position());
        if rows.len() == MAX_ROWS {
            problems.push((line, format!("a file may have at most {MAX_ROWS} rows; split it")));
            break;
        }
        match columns.row(line, &record) {
            Ok(row) => rows.push(row),
            Err(problem) => problems.push((line, problem)),
        }
    }
    if rows.is_empty() && problems.is_empty() {
        problems.push((1, "the file has no row below the header; add at least one".to_owned()));
    }
    if !problems.is_empty() {
        return Err(RowProblems(problems));
    }
    let has_lone_cr = (0..text.len()).any(|at| text[at] == b'\r' && ends_line(text, at));
    Ok(Table { rows, digest: HEXLOWER.encode(&Sha256::digest(bytes)), has_lone_cr })
}

/// Counts lines up to a record. The CSV reader's own count excludes the blank lines and the line end directly before a record.
struct Lines<'a> {
    text: &'a [u8],
    at: usize,
    line: u64,
}

impl Lines<'_> {
    fn find(&mut self, position: Option<&csv::Position>) -> u64 {
        let start = position.map_or(self.at, |position| position.byte() as usize).clamp(self.at, self.text.len());
        let blank = self.text[start..].iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
        let end = start + blank;
        self.line += (self.at..end).map(|at| u64::from(ends_line(self.text, at))).sum::<u64>();
        self.at = end;
        self.line
    }
}

/// Whether a line ends at this byte. LF, CR LF and CR alone each end one, as in the CSV reader.
fn ends_line(text: &[u8], at: usize) -> bool {
    match text[at] {
        b'\n' => true,
        b'\r' => text.get(at + 1) != Some(&b'\n'),
        _ => false,
    }
}

struct Columns {
    count: usize,
    name: usize,
    address: usize,
    phone: Option<usize>,
}

impl Columns {
    fn find(header: csv::Result<&csv::ByteRecord>) -> Result<Self, String> {
        const EXPECTED: &str = "the header must be name,address,phone (phone may be left out)";
        let header = header.map_err(|_| EXPECTED.to_owned())?;
        let names: Vec<String> =
            header.iter().map(|name| String::from_utf8_lossy(name).trim().to_ascii_lowercase()).collect();
        for (at, name) in names.iter().enumerate() {
            if !["name", "address", "phone"].contains(&name.as_str()) {
                return Err(format!("column {} is not known; {EXPECTED}", at + 1));
            }
            if names[..at].contains(name) {
                return Err(format!("column {name} appears twice; {EXPECTED}"));
            }
        }
        let at = |wanted: &str| names.iter().position(|name| name == wanted);
        match (at("name"), at("address")) {
            (Some(name), Some(address)) => Ok(Self { count: names.len(), name, address, phone: at("phone") }),
            _ => Err(EXPECTED.to_owned()),
        }
    }

    fn row(&self, line: u64, record: &csv::ByteRecord) -> Result<Row, String> {
        if record.len() != self.count {
            return Err(format!(
                "the row has {} fields, the header has {}; quote fields with commas",
                record.len(),
                self.count
            ));
        }
        let field = |at: usize, name: &str| {
            let text =
                std::str::from_utf8(&record[at]).map_err(|_| format!("{name} is not UTF-8; convert the file"))?;
            match text.chars().count() {
                0..=MAX_FIELD_CHARS => Ok(text.to_owned()),
                count => Err(format!("{name} has {count} characters; at most {MAX_FIELD_CHARS} are allowed")),
            }
        };
        let filled = |at, name| match field(at, name)? {
            text if text.trim().is_empty() => Err(format!("{name} is blank; it is required")),
            text => Ok(text),
        };
        let phone = self.phone.map(|at| field(at, "phone")).transpose()?.filter(|text| !text.trim().is_empty());
        Ok(Row { line, name: filled(self.name, "name")?, address: filled(self.address, "address")?, phone })
    }
}
