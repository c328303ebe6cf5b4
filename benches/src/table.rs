//! The table that a run prints.

use crate::rounds::{Goal, Row};

/// Writes rows as a Markdown table.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    let mut out = String::from(
        "| work | against | ours | ratio: median (min to max) | goal | |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let goal = match row.goal {
            Goal::AtLeast(least) => format!("at least {least}x"),
            Goal::AtMost(most) => format!("at most {most}x"),
            Goal::Shown => "-".to_owned(),
        };
        let result = match &row.failed {
            Some(why) => format!("FAILED: {why}"),
            None => format!(
                "{:.2} ({:.2} to {:.2})",
                row.median(),
                row.ratios.first().copied().unwrap_or(f64::NAN),
                row.ratios.last().copied().unwrap_or(f64::NAN)
            ),
        };
        let mark = if row.holds() { "holds" } else { "missed" };
        out.push_str(&format!(
            "| {} | {} | {} | {result} | {goal} | {mark} |\n",
            row.work,
            row.against,
            short(row.ours)
        ));
    }
    out
}

/// Shortens a large number.
#[must_use]
pub fn short(number: f64) -> String {
    if number >= 1e6 {
        format!("{:.2} M", number / 1e6)
    } else if number >= 1e3 {
        format!("{:.1} k", number / 1e3)
    } else {
        format!("{number:.1}")
    }
}
