//! Line charts as SVG, coloured by the classes of the page they stand in.

use std::fmt::Write;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// (x, y) points, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// A chart with y from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Its title, also what a screen reader says.
    pub title: String,
    /// What x is.
    pub x: String,
    /// The lines; the n-th has the class `series-n`.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 44.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 40.0;

impl Chart {
    /// The chart as an `<svg>` element with a legend under it.
    pub fn to_html(&self) -> String {
        let mut svg = String::new();
        let last = self.series.iter().flat_map(|s| &s.points).map(|p| p.0).fold(1.0, f64::max);
        let at_x = |x: f64| LEFT + x / last * (WIDTH - LEFT - RIGHT);
        let at_y = |y: f64| TOP + (1.0 - y.clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM);
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\"><title>{title}</title>",
            title = escape(&self.title)
        );
        for y in [0.0, 0.25, 0.5, 0.75, 1.0] {
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{py}\" y2=\"{py}\"/>\
                 <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}%</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at_y(y) + 4.0,
                y * 100.0,
                py = at_y(y)
            );
        }
        for x in ticks(last) {
            let _ = write!(
                svg,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{x}</text>",
                at_x(x),
                HEIGHT - BOTTOM + 18.0
            );
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let _ = write!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            HEIGHT - 4.0,
            escape(&self.x)
        );
        for (index, series) in self.series.iter().enumerate() {
            let points: Vec<String> =
                series.points.iter().map(|(x, y)| format!("{:.1},{:.1}", at_x(*x), at_y(*y))).collect();
            let _ = write!(svg, "<polyline class=\"series-{index}\" points=\"{}\"/>", points.join(" "));
            for (x, y) in &series.points {
                let _ = write!(
                    svg,
                    "<circle class=\"series-{index}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"><title>{} at {x}: {:.1}%</title></circle>",
                    at_x(*x),
                    at_y(*y),
                    escape(&series.name),
                    y * 100.0
                );
            }
        }
        svg.push_str("</svg><p class=\"legend\">");
        for (index, series) in self.series.iter().enumerate() {
            let _ = write!(svg, "<span class=\"series-{index}\">{}</span> ", escape(&series.name));
        }
        svg.push_str("</p></figure>");
        svg
    }
}

/// Up to six round numbers from 0 to `last`.
fn ticks(last: f64) -> Vec<f64> {
    let power = 10f64.powf((last / 5.0).max(1e-9).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| last / step <= 6.0).unwrap_or(last);
    (0..).map(|i| f64::from(i) * step).take_while(|x| *x <= last * 1.0001).collect()
}

/// Text for HTML.
pub(super) fn escape(text: &str) -> String {
    let replace = |c: char| match c {
        '&' => "&amp;".to_string(),
        '<' => "&lt;".to_string(),
        '>' => "&gt;".to_string(),
        '"' => "&quot;".to_string(),
        '\'' => "&#39;".to_string(),
        other => other.to_string(),
    };
    text.chars().map(replace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(200.0), [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert_eq!(ticks(600.0), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]);
        assert_eq!(ticks(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    }

    #[test]
    fn names_cannot_leave_their_place() {
        let series = vec![Series { name: "<script>\"".into(), points: vec![(0.0, 2.0), (4.0, f64::NAN)] }];
        let html = Chart { title: "a & b".into(), x: "'x'".into(), series }.to_html();
        assert!(html.contains("&lt;script&gt;&quot;") && html.contains("a &amp; b") && !html.contains("<script"));
    }
}
