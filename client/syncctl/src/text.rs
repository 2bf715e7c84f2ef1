//! Terminal output: colour, tables that fit, durations, escaping of names.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::ValueEnum;
use serde::Serialize;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// When to use colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// A colour or weight, as the parameter of an SGR sequence (ECMA-48).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ink {
    /// No sequence.
    Plain = 0,
    /// Headings and names.
    Bold = 1,
    /// Details.
    Dim = 2,
    /// Problems.
    Red = 31,
    /// Good states.
    Green = 32,
    /// Waiting.
    Yellow = 33,
    /// Activity.
    Cyan = 36,
}

/// Standard output and its capabilities.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// Whether results are JSON.
    pub json: bool,
    color: bool,
    /// The terminal's width in columns; None if the output isn't a terminal.
    width: Option<usize>,
}

impl Screen {
    /// Detects the capabilities of standard output.
    pub fn new(json: bool, color: Color) -> Self {
        let terminal = io::stdout().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let color = match color {
            Color::Auto => {
                terminal && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
            }
            Color::Always => true,
            Color::Never => false,
        };
        let columns = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|&n| n > 0);
        let of_terminal = || terminal_size::terminal_size().map(|(w, _)| usize::from(w.0));
        let width = terminal.then(|| columns().or_else(of_terminal).unwrap_or(80));
        Self { json, color, width }
    }

    /// `text` in `ink`, if colour is on.
    pub fn paint(&self, ink: Ink, text: impl AsRef<str>) -> String {
        let text = text.as_ref();
        match self.color && ink != Ink::Plain && !text.is_empty() {
            true => format!("\x1b[{}m{text}\x1b[0m", ink as u8),
            false => text.to_owned(),
        }
    }

    /// Prints a line.
    ///
    /// # Errors
    /// If standard output is gone.
    pub fn line(&self, text: impl AsRef<str>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "{}", text.as_ref())?;
        out.flush()
    }

    /// Prints an empty line and a heading.
    ///
    /// # Errors
    /// If standard output is gone.
    pub fn heading(&self, text: &str) -> io::Result<()> {
        self.line(format!("\n{}", self.paint(Ink::Bold, text)))
    }

    /// Prints a value as JSON: indented on a terminal, else in one line.
    ///
    /// # Errors
    /// If standard output is gone.
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(match self.width {
            Some(_) => serde_json::to_string_pretty(value)?,
            None => serde_json::to_string(value)?,
        })
    }

    /// Prints a table with aligned columns, cut to the terminal's width.
    ///
    /// # Errors
    /// If standard output is gone.
    pub fn table(&self, table: &Table) -> io::Result<()> {
        io::stdout().lock().write_all(table.render(self).as_bytes())
    }
}

/// Prints a line to standard error. Ignores errors: a closed standard error must not change the
/// exit code.
pub fn complain(text: impl fmt::Display) {
    let line = format!("syncctl: {text}\n");
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Rows of text under a heading.
#[derive(Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<(Ink, String)>>,
}

/// The width below which no column is cut; all headings fit.
const NARROWEST: usize = 9;

impl Table {
    /// An empty table. A heading that starts with `>` marks a column of numbers: aligned to the
    /// right, and never cut.
    pub fn new(head: &[&'static str]) -> Self {
        Self { head: head.to_vec(), rows: Vec::new() }
    }

    /// Adds a row of as many cells as there are headings.
    pub fn row<const N: usize>(&mut self, cells: [(Ink, String); N]) {
        debug_assert_eq!(N, self.head.len());
        self.rows.push(cells.into());
    }

    fn render(&self, screen: &Screen) -> String {
        let titles = self.head.iter().map(|title| title.trim_start_matches('>'));
        let mut widths: Vec<usize> = titles.clone().map(str::len).collect();
        for row in &self.rows {
            for (width, (_, cell)) in widths.iter_mut().zip(row) {
                *width = cell.width().max(*width);
            }
        }
        if let Some(limit) = screen.width {
            let gaps = 2 * self.head.len().saturating_sub(1);
            let excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(limit);
            let words = self.head.iter().zip(&mut widths).filter(|(title, _)| !is_numeric(title));
            shrink(words.map(|(_, width)| width).collect(), excess);
        }
        let mut out = String::new();
        let head = titles.map(|title| (Ink::Dim, title.to_owned())).collect();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut line = String::new();
            for ((title, &width), (ink, cell)) in self.head.iter().zip(&widths).zip(row) {
                let cell = cut(cell, width);
                let pad = " ".repeat(width - cell.width());
                let cell = screen.paint(*ink, cell);
                let _ = match is_numeric(title) {
                    true => write!(line, "{pad}{cell}  "),
                    false => write!(line, "{cell}{pad}  "),
                };
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

fn is_numeric(title: &str) -> bool {
    title.starts_with('>')
}

/// Reduces the widest column, repeatedly, until `excess` is gone or all are [`NARROWEST`].
fn shrink(mut widths: Vec<&mut usize>, excess: usize) {
    for _ in 0..excess {
        match widths.iter_mut().max() {
            Some(widest) if **widest > NARROWEST => **widest -= 1,
            _ => return,
        }
    }
}

/// `text` in at most `width` columns, its end replaced by an ellipsis if it is longer.
fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let kept = text.chars().take_while(|c| {
        let needs = c.width().unwrap_or(0);
        let fits = needs <= room;
        room = room.saturating_sub(needs);
        fits
    });
    kept.chain(['…']).collect()
}

/// `text` with control characters and bidirectional overrides escaped, which could control the
/// terminal or mislead the reader.
pub fn plain(text: &str) -> String {
    let harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match harmful(c) {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
        out
    })
}

/// A duration with at most two units.
pub fn span(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0 if d.as_millis() == 0 => format!("{} us", d.as_micros()),
        0 => format!("{} ms", d.as_millis()),
        1..10 => format!("{:.1} s", d.as_secs_f64()),
        10..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        3600..86400 => format!("{} h {:02} min", s / 3600, s / 60 % 60),
        _ => format!("{} d {:02} h", s / 86400, s / 3600 % 24),
    }
}

/// The time of day in UTC, to the microsecond, of `us` microseconds after the Unix epoch.
pub fn time_of_day(us: u64) -> String {
    let s = us / 1_000_000;
    let (hour, minute, second) = (s / 3600 % 24, s / 60 % 60, s % 60);
    format!("{hour:02}:{minute:02}:{second:02}.{:06}Z", us % 1_000_000)
}

/// `n` with a noun in the singular or plural.
pub fn count(n: u64, one: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        _ => format!("{n} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen(width: Option<usize>) -> Screen {
        Screen { json: false, color: false, width }
    }

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", ">N"]);
        table.row([(Ink::Plain, "a-rather-long-name".into()), (Ink::Plain, "7".into())]);
        table.row([(Ink::Plain, "日本語の名前です".into()), (Ink::Plain, "12345".into())]);
        table
    }

    #[test]
    fn a_table_fits_the_terminal() {
        let text = sample().render(&screen(Some(18)));
        assert_eq!(text, "NAME             N\na-rather-l…      7\n日本語の名…  12345\n");
        assert!(text.lines().all(|line| line.width() <= 18));
    }

    #[test]
    fn nothing_is_cut_where_there_is_no_terminal() {
        let text = sample().render(&screen(None));
        assert!(text.contains("a-rather-long-name") && text.contains("日本語の名前です"));
    }

    #[test]
    fn names_cannot_control_the_terminal() {
        assert_eq!(plain("a\x1b[2J\nb\u{202e}c"), r"a\u{1b}[2J\nb\u{202e}c");
        assert_eq!(plain("nightly/日本"), "nightly/日本");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [
            (0.000_012, "12 us"),
            (0.25, "250 ms"),
            (1.25, "1.2 s"),
            (59.9, "59 s"),
            (125.0, "2 min 05 s"),
            (7260.0, "2 h 01 min"),
            (90_000.0, "1 d 01 h"),
        ] {
            assert_eq!(span(Duration::from_secs_f64(seconds)), text);
        }
    }
}
