//! The results: printed as they are measured, and written as Markdown at the end.

use std::{fmt::Write as _, fs, path::Path};

use super::{
    Outcome,
    plot::{self, Plot},
    stats::digits,
};

/// All results of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    goals: Vec<Goal>,
    tables: Vec<Table>,
    plots: Vec<Plot>,
}

/// A goal and its result.
#[derive(Debug)]
struct Goal {
    subject: String,
    target: String,
    figure: String,
    /// `None` if it could not be measured.
    met: Option<bool>,
}

/// Figures under a heading.
#[derive(Debug)]
pub(crate) struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn title(&self) -> &str {
        &self.title
    }

    pub(crate) fn new(title: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().copied().map(str::to_owned).collect();
        Self { title: title.to_owned(), columns, rows: Vec::new() }
    }

    #[expect(clippy::print_stdout, reason = "what a benchmark is for")]
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().collect();
        println!("    {}: {}", self.title, cells.join(" | "));
        self.rows.push(cells);
    }
}

impl Report {
    /// Records a goal, the result, and whether the goal is met.
    #[expect(clippy::print_stdout, reason = "what a benchmark is for")]
    pub(crate) fn goal(&mut self, subject: &str, target: &str, figure: String, met: bool) {
        let verdict = if met { "met" } else { "MISSED" };
        println!("  {verdict}: {subject}: {figure} (goal: {target})");
        self.goals.push(Goal {
            subject: subject.to_owned(),
            target: target.to_owned(),
            figure,
            met: Some(met),
        });
    }

    /// Records how many times the sidecar's processor time the official plugin and ssh need for the same
    /// bytes.
    pub(crate) fn fewer_cpu_seconds(&mut self, subject: &str, ours: f64, theirs: f64) {
        let times = theirs / ours;
        let figure =
            format!("{} ({} against {} s per 100 MB)", digits(times), digits(theirs), digits(ours));
        let subject = format!("{subject}: CPU of plugin + ssh × the sidecar's");
        self.goal(&subject, "≥ 5", figure, times >= 5.0);
    }

    /// Records what could not be measured, and why.
    #[expect(clippy::print_stdout, reason = "what a benchmark is for")]
    pub(crate) fn not_measured(&mut self, subject: &str, why: &str) {
        println!("  NOT MEASURED: {subject}: {why}");
        self.goals.push(Goal {
            subject: subject.to_owned(),
            target: String::new(),
            figure: format!("not measured: {}", why.lines().next().unwrap_or_default()),
            met: None,
        });
    }

    pub(crate) fn table(&mut self, table: Table) {
        self.tables.push(table);
    }

    pub(crate) fn plot(&mut self, plot: Plot) {
        self.plots.push(plot);
    }

    /// Whether everything could be measured.
    pub(crate) fn is_complete(&self) -> bool {
        self.goals.iter().all(|goal| goal.met.is_some())
    }

    /// Writes `report.md` and the plots into `directory`.
    pub(crate) fn write(&self, directory: &Path, conditions: &str) -> Outcome<()> {
        fs::create_dir_all(directory)?;
        let mut text = format!("# Measured\n\n{conditions}\n\n");
        writeln!(text, "| | goal | measured | |\n| --- | --- | --- | --- |")?;
        for Goal { subject, target, figure, met } in &self.goals {
            let verdict = match met {
                Some(true) => "met",
                Some(false) => "**missed**",
                None => "–",
            };
            writeln!(text, "| {subject} | {target} | {figure} | {verdict} |")?;
        }
        for Table { title, columns, rows } in &self.tables {
            writeln!(text, "\n## {title}\n\n| {} |", columns.join(" | "))?;
            writeln!(text, "|{}", " --- |".repeat(columns.len()))?;
            for row in rows {
                writeln!(text, "| {} |", row.join(" | "))?;
            }
        }
        if !self.plots.is_empty() {
            writeln!(text, "\n## Growth\n")?;
        }
        for plot in &self.plots {
            let file = format!("{}.svg", plot.name);
            plot::draw(plot, &directory.join(&file))?;
            writeln!(text, "![{}]({file})\n", plot.title)?;
        }
        Ok(fs::write(directory.join("report.md"), text)?)
    }
}
