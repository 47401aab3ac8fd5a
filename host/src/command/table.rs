//! Plain tables: columns of equal width, two spaces between them, the last one as long as its text.

use console::{Style, measure_text_width};

/// A table and its rows.
pub struct Table {
    header: &'static [&'static str],
    rows: Vec<(Style, Vec<String>)>,
}

impl Table {
    /// A table without rows.
    pub fn new(header: &'static [&'static str]) -> Self {
        Self { header, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, style: Style, cells: impl IntoIterator<Item = String>) {
        self.rows.push((style, cells.into_iter().collect()));
    }

    /// The lines; `empty` instead if there is no row.
    pub fn lines(&self, empty: &str) -> String {
        if self.rows.is_empty() {
            return format!("{empty}\n");
        }
        let header: Vec<String> = self.header.iter().map(|name| (*name).to_owned()).collect();
        let all = || std::iter::once(&header).chain(self.rows.iter().map(|(_, cells)| cells));
        let width = |column: usize| {
            all().filter_map(|cells| cells.get(column)).map(|cell| measure_text_width(cell)).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let dim = Style::new().dim();
        let head = std::iter::once(line(&dim, &header, &widths));
        head.chain(self.rows.iter().map(|(style, cells)| line(style, cells, &widths))).collect()
    }
}

/// One line. The style leaves the line's end alone, so that no colour reaches the next line.
pub fn line(style: &Style, cells: &[String], widths: &[usize]) -> String {
    let mut text = String::new();
    for (index, cell) in cells.iter().enumerate() {
        text.push_str(cell);
        if index + 1 < cells.len() {
            let missing = widths.get(index).copied().unwrap_or_default().saturating_sub(measure_text_width(cell));
            text.extend(std::iter::repeat_n(' ', missing + 2));
        }
    }
    format!("{}\n", style.apply_to(text.trim_end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "STATE", "WHY"]);
        assert_eq!(table.lines("no breaker"), "no breaker\n");
        for cells in [["api/any", "open", "5 failures in a row"], ["api/größer", "closed", ""]] {
            table.row(Style::new(), cells.map(str::to_owned));
        }
        let expected = "NAME        STATE   WHY\napi/any     open    5 failures in a row\napi/größer  closed\n";
        assert_eq!(table.lines("no breaker"), expected);
    }

    #[test]
    fn a_colour_ends_before_the_line_does() {
        let line = line(&Style::new().red().force_styling(true), &["a".to_owned(), "b".to_owned()], &[3]);
        assert_eq!(line, "\u{1b}[31ma    b\u{1b}[0m\n");
    }
}
