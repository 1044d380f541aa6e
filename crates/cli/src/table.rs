//! Aligned plain columns, as `kubectl` and `istioctl` print them.

use std::fmt;

/// Rows under a heading. Every column but the last is padded to its widest cell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    heading: Vec<String>,
    rows: Vec<Vec<String>>,
    /// Blanks between columns.
    gap: usize,
}

/// Blanks between columns, as istioctl's tab writer leaves.
const GAP: usize = 5;

impl Table {
    /// A table without rows.
    pub fn new<const N: usize>(heading: [&str; N]) -> Self {
        Self { heading: heading.map(str::to_owned).to_vec(), rows: Vec::new(), gap: GAP }
    }

    /// With other than the usual blanks between columns.
    #[must_use]
    pub fn with_gap(mut self, blanks: usize) -> Self {
        self.gap = blanks;
        self
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// True when there is only the heading.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = || std::iter::once(&self.heading).chain(&self.rows);
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| {
                lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in lines() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let padding = width + self.gap - cell.chars().count();
                line.extend(std::iter::repeat_n(' ', padding));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_not_padded() {
        let mut table = Table::new(["NAME", "X"]);
        table.row(["a-long-name".into(), "1".into()]);
        table.row(["é".into(), "2".into()]);
        assert_eq!(table.to_string(), "NAME            X\na-long-name     1\né               2\n");
    }
}
