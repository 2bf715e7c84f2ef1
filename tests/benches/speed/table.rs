//! What was measured, and its Markdown table. How it was measured never lies here.

use std::fmt;

use crate::worker::Cpus;

/// What a figure counts.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Time, in nanoseconds.
    Time,
    /// Things per second.
    Rate,
    /// Memory, in bytes.
    Bytes,
    /// Nothing: one thing through another of its kind.
    Share,
}

/// What a row must hold. `Ratio` is syncd's figure through the rival's.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    AtMost(f64),
    AtLeast(f64),
}

/// One comparison: the figures of each round, in the order in which they were taken.
pub struct Row {
    /// Of the acceptance page.
    pub id: &'static str,
    pub work: String,
    pub cpus: Cpus,
    pub unit: Unit,
    pub ours: Vec<f64>,
    pub rival: Option<(String, Vec<f64>)>,
    pub goal: Option<Goal>,
}

/// The middle one, or the mean of the two in the middle.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { (sorted[half - 1] + sorted[half]) / 2.0 }
}

impl Unit {
    fn show(self, figure: f64) -> String {
        match self {
            Unit::Time if figure < 1e3 => format!("{figure:.0} ns"),
            Unit::Time if figure < 1e6 => format!("{:.1} us", figure / 1e3),
            Unit::Time => format!("{:.0} ms", figure / 1e6),
            Unit::Rate if figure < 1e6 => format!("{:.0} k/s", figure / 1e3),
            Unit::Rate => format!("{:.2} M/s", figure / 1e6),
            Unit::Bytes => format!("{figure:.0} B"),
            Unit::Share => format!("{figure:.2}"),
        }
    }
}

impl Row {
    /// The rival, by name, and what it did in the same rounds.
    pub fn against(&mut self, rival: &str, figures: &[f64]) -> &mut Row {
        self.rival = Some((rival.into(), figures.to_vec()));
        self
    }

    pub fn goal(&mut self, goal: Goal) -> &mut Row {
        self.goal = Some(goal);
        self
    }

    /// Of the rounds' own ratios, the median: noise that lasts longer than a round hits both.
    fn ratio(&self) -> Option<f64> {
        let (_, rival) = self.rival.as_ref()?;
        let ratios: Vec<_> = self.ours.iter().zip(rival).map(|(a, b)| a / b).collect();
        Some(median(&ratios))
    }

    fn is_met(&self, goal: Goal) -> bool {
        let (ours, ratio) = (median(&self.ours), self.ratio().unwrap_or(f64::NAN));
        match goal {
            Goal::RatioAtMost(most) => ratio <= most,
            Goal::RatioAtLeast(least) => ratio >= least,
            Goal::AtMost(most) => ours <= most,
            Goal::AtLeast(least) => ours >= least,
        }
    }

    /// All rounds, for whoever wonders how steady they were.
    pub fn rounds(&self) -> String {
        let show = |figures: &[f64]| {
            figures.iter().map(|&figure| self.unit.show(figure)).collect::<Vec<_>>().join(", ")
        };
        let rival =
            self.rival.iter().map(|(name, figures)| format!(" | {name}: {}", show(figures)));
        let (id, work, cpus) = (self.id, &self.work, self.cpus.as_str());
        format!("{id} {work}, {cpus}: {}{}", show(&self.ours), rival.collect::<String>())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { id, work, cpus, unit, .. } = self;
        let ours = unit.show(median(&self.ours));
        let rival = self.rival.as_ref().map_or(String::new(), |(name, figures)| {
            format!("{} ({name})", unit.show(median(figures)))
        });
        let ratio = self.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let goal = self.goal.map_or(String::new(), |goal| match goal {
            Goal::RatioAtMost(most) => format!("ratio at most {most}"),
            Goal::RatioAtLeast(least) => format!("ratio at least {least}"),
            Goal::AtMost(most) => format!("at most {}", unit.show(most)),
            Goal::AtLeast(least) => format!("at least {}", unit.show(least)),
        });
        let met = match self.goal.map(|goal| self.is_met(goal)) {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let cpus = cpus.as_str();
        write!(f, "| {id} | {work} | {cpus} | {ours} | {rival} | {ratio} | {goal} | {met} |")
    }
}

/// The head of the table that the rows make.
pub const HEAD: &str = "\
| # | work | CPUs | syncd | rival | ratio | goal | met |
|---|---|---|---|---|---|---|---|";
