//! What a run leaves behind: a Markdown table and a chart for a backend.

use std::fmt::Write as _;

use crate::{
    rounds::Goal,
    side::{Line, Spread, Unit},
};

/// Writes the lines of a backend as a Markdown section.
#[must_use]
pub fn markdown(title: &str, about: &str, lines: &[Line]) -> String {
    let mut out = format!("## {title}\n\n{about}\n\n");
    out.push_str(
        "| work | mq | CPU | against | theirs | CPU | ratio: median (min to max) | goal | |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for line in lines {
        let ratio = match (&line.failed, line.ratio) {
            (Some(why), _) => why.replace('|', "/"),
            (None, Some(ratio)) => format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high),
            (None, None) => "-".to_owned(),
        };
        let goal = match line.goal {
            Goal::AtLeast(least) => format!("at least {least}"),
            Goal::AtMost(most) => format!("at most {most}"),
            Goal::Shown => "-".to_owned(),
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {ratio} | {goal} | {} |",
            line.work,
            value(line.unit, line.ours),
            micros(line.our_cpu),
            if line.against.is_empty() {
                "-"
            } else {
                &line.against
            },
            value(line.unit, line.theirs),
            micros(line.their_cpu),
            line.verdict(),
        );
    }
    out
}

fn value(unit: Unit, spread: Option<Spread>) -> String {
    let Some(Spread { median, .. }) = spread else {
        return "-".to_owned();
    };
    match unit {
        Unit::Rate => format!("{}/s", short(median)),
        Unit::Micros => format!("{median:.0} us"),
        Unit::Nanos => format!("{median:.0} ns"),
        Unit::Bytes => format!("{median:.0} B"),
        Unit::Percent => format!("{median:.2} %"),
        Unit::Count => format!("{median:.0}"),
    }
}

fn short(number: f64) -> String {
    if number >= 1e6 {
        format!("{:.2} M", number / 1e6)
    } else if number >= 1e3 {
        format!("{:.1} k", number / 1e3)
    } else {
        format!("{number:.1}")
    }
}

fn micros(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "-".to_owned(), |spread| format!("{:.2} us", spread.median))
}

/// The scale of the chart: a bar that is longer is cut off there.
const LONGEST: f64 = 4.0;
const LEFT: f64 = 430.0;
const WIDE: f64 = 400.0;
const ROW: f64 = 24.0;

/// Draws the ratios of a backend. Times and memory are turned round, so that longer is better in every row.
#[must_use]
pub fn chart(title: &str, lines: &[Line]) -> String {
    let shown: Vec<(&Line, Spread)> = lines
        .iter()
        .filter_map(|line| Some((line, line.ratio?)))
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "a few dozen rows")]
    let height = ROW * shown.len() as f64 + 70.0;
    let place = |ratio: f64| LEFT + WIDE * ratio.clamp(0.0, LONGEST) / LONGEST;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"900\" height=\"{height}\" viewBox=\"0 0 900 {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"900\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"22\" font-size=\"15\">{}: how many times as good as the other, longer is better</text>\n",
        escape(title)
    );
    for (row, (line, ratio)) in shown.iter().enumerate() {
        let turned = line.unit != Unit::Rate;
        let (middle, low, high) = if turned {
            (1.0 / ratio.median, 1.0 / ratio.high, 1.0 / ratio.low)
        } else {
            (ratio.median, ratio.low, ratio.high)
        };
        #[expect(clippy::cast_precision_loss, reason = "a few dozen rows")]
        let top = 40.0 + ROW * row as f64;
        let color = match line.verdict() {
            "missed" => "#c9803a",
            _ => "#3a7ac9",
        };
        let _ = writeln!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{} / {}</text>\n\
             <rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{:.1}\" height=\"14\" fill=\"{color}\"/>\n\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"#222\"/>\n\
             <text x=\"{:.0}\" y=\"{:.0}\">{middle:.2}</text>",
            LEFT - 8.0,
            top + 12.0,
            escape(&line.work),
            escape(&line.against),
            top + 1.0,
            place(middle) - LEFT,
            place(low),
            place(high),
            top + 8.0,
            top + 8.0,
            LEFT + WIDE + 14.0,
            top + 12.0,
        );
        let asked = match line.goal {
            Goal::AtLeast(least) => Some(least),
            Goal::AtMost(most) => Some(1.0 / most),
            Goal::Shown => None,
        };
        if let Some(asked) = asked {
            let x = place(asked);
            let _ = writeln!(
                out,
                "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.0}\" y2=\"{:.0}\" stroke=\"#b00\" stroke-width=\"2\"/>",
                top - 2.0,
                top + 18.0
            );
        }
    }
    let one = place(1.0);
    let _ = writeln!(
        out,
        "<line x1=\"{one}\" x2=\"{one}\" y1=\"34\" y2=\"{:.0}\" stroke=\"#888\" stroke-dasharray=\"3 3\"/>\n\
         <text x=\"{one}\" y=\"{:.0}\" text-anchor=\"middle\" fill=\"#555\">as good (1.0); red: the goal; thin: all rounds; \
         bars end at {LONGEST}</text>\n</svg>",
        height - 28.0,
        height - 10.0
    );
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        meter::Sample,
        side::{LATENCY, RATE, Rounds, Work},
    };

    fn lines() -> Vec<Line> {
        let mut lines = Work::new("produce <64>", RATE, || Ok(Sample::of([20.0])))
            .against("raw", [Goal::AtLeast(1.0)], || Ok(Sample::of([10.0])))
            .against("lossy", [], || Err("lost 1 | of 2".into()))
            .run(Rounds::exactly(1));
        lines.extend(
            Work::new("end to end", LATENCY, || Ok(Sample::of([2.0, 4.0, 8.0])))
                .against("raw", [Goal::AtMost(1.0)], || Ok(Sample::of([1.0, 4.0, 16.0])))
                .run(Rounds::exactly(1)),
        );
        lines
    }

    #[test]
    fn the_table_names_who_failed_and_what_is_missed() {
        let table = markdown("Redis", "Redis 7.0, one server.", &lines());
        assert!(table.contains(
            "| produce <64> | 20.0/s | - | raw | 10.0/s | - | 2.00 (2.00 to 2.00) | at least 1 | holds |"
        ));
        assert!(table.contains("| lossy: lost 1 / of 2 | - | FAILED |"), "{table}");
        assert!(
            table.contains("| end to end, p50 | 2 us |") && table.contains("| missed |"),
            "{table}"
        );
    }

    #[test]
    fn the_chart_turns_times_round_and_escapes_names() {
        let chart = chart("Redis", &lines());
        assert!(chart.contains("produce &lt;64&gt; / raw"), "{chart}");
        assert!(
            chart.contains(">0.50</text>") && chart.contains(">2.00</text>"),
            "{chart}"
        );
        assert!(chart.trim_end().ends_with("</svg>"));
    }
}
