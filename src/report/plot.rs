//! Line charts as SVG, coloured by the classes of the page they stand in. Lines differ in their dashes as well as in colour.

use std::fmt::Write;

use super::units::label;

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the legend; lines of one name and style share an entry.
    pub name: String,
    /// Its colour and dashes: an index below six; larger ones start again.
    pub style: usize,
    /// One of several like it: drawn thin and without marks.
    pub thin: bool,
    /// (x, y) points, in the order of x.
    pub points: Vec<(f64, f64)>,
}

/// How many lines can be told apart.
pub const STYLES: usize = 6;

/// A horizontal line across a chart, with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// Its name.
    pub name: String,
    /// The style of the series that it is a limit of.
    pub style: usize,
    /// Where it lies.
    pub y: f64,
}

/// A chart with y from 0 to 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chart {
    /// Its title, also what a screen reader says.
    pub title: String,
    /// What x is.
    pub x: String,
    /// Whether x is logarithmic; points at 0 and below are then left out.
    pub log: bool,
    /// The lines.
    pub series: Vec<Series>,
    /// Lines of reference.
    pub limits: Vec<Limit>,
    /// A sentence under it; empty for none.
    pub note: String,
}

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 42.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 38.0;
/// Marks of a line with more points than this would run together.
const MOST_MARKS: usize = 24;

impl Series {
    /// A line of its own.
    pub fn new(name: impl Into<String>, style: usize, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), style: style % STYLES, thin: false, points }
    }

    /// The steps of a quantity that keeps its value until it changes: each point's y lasts to the next point's x, the last
    /// one's to `end`.
    pub fn staircase(name: impl Into<String>, style: usize, points: &[(f64, f64)], end: f64) -> Self {
        let mut corners: Vec<(f64, f64)> = Vec::with_capacity(2 * points.len());
        for &(x, y) in points {
            corners.extend(corners.last().map(|last| (x, last.1)));
            corners.push((x, y));
        }
        corners.extend(corners.last().map(|last| (end, last.1)).filter(|corner| corner.0 > points[points.len() - 1].0));
        Self { thin: true, ..Self::new(name, style, corners) }
    }
}

/// Where x is drawn.
struct Axis {
    log: bool,
    first: f64,
    last: f64,
}

impl Axis {
    fn of(chart: &Chart) -> Self {
        let xs = || chart.series.iter().flat_map(|s| &s.points).map(|p| p.0).filter(|x| x.is_finite());
        if !chart.log {
            return Self { log: false, first: 0.0, last: xs().fold(1.0, f64::max) };
        }
        let (first, last) = xs().filter(|x| *x > 0.0).fold((f64::INFINITY, 0.0f64), |(a, b), x| (a.min(x), b.max(x)));
        // Decades that f64 holds with room to spare, whatever the numbers are.
        let decade = |power: f64| 10f64.powf(power.clamp(-300.0, 300.0));
        let first = if first.is_finite() { decade(first.log10().floor()) } else { 1.0 };
        Self { log: true, first, last: decade(last.max(10.0 * first).log10().ceil()) }
    }

    fn place(&self, x: f64) -> Option<f64> {
        let share = match self.log {
            _ if !x.is_finite() => return None,
            true if x > 0.0 => (x / self.first).log10() / (self.last / self.first).log10(),
            true => return None,
            false => x / self.last,
        };
        Some(LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)).filter(|place| place.is_finite())
    }

    /// Up to six round numbers.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let (first, last) = (self.first.log10().round() as i32, self.last.log10().round() as i32);
            let step = ((last - first) as usize).div_ceil(6).max(1);
            return (first..=last).step_by(step).map(|power| 10f64.powi(power)).collect();
        }
        let power = 10f64.powf((self.last / 5.0).max(1e-9).log10().floor());
        let fits = |step: &f64| self.last / step <= 6.0;
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(fits).unwrap_or(self.last);
        (0..=6).map(|i| f64::from(i) * step).take_while(|x| *x <= self.last * 1.0001).collect()
    }
}

fn at_y(y: f64) -> f64 {
    TOP + (1.0 - y.clamp(0.0, 1.0)) * (HEIGHT - TOP - BOTTOM)
}

impl Chart {
    /// The chart as a `<figure>` with an `<svg>`, without a legend.
    pub fn to_html(&self) -> String {
        let (mut svg, axis) = (String::new(), Axis::of(self));
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<figure><figcaption>{title}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" \
             aria-label=\"{title}\"><title>{title}</title>",
            title = escape(&self.title)
        );
        self.draw_axes(&mut svg, &axis);
        self.draw_limits(&mut svg);
        self.series.iter().for_each(|series| draw_series(&mut svg, &axis, series));
        svg.push_str("</svg>");
        if !self.note.is_empty() {
            let _ = write!(svg, "<p class=\"soft\">{}</p>", escape(&self.note));
        }
        svg.push_str("</figure>");
        svg
    }

    fn draw_axes(&self, svg: &mut String, axis: &Axis) {
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
        for x in axis.ticks() {
            let Some(place) = axis.place(x) else { continue };
            let (base, text) = (HEIGHT - BOTTOM, label(x));
            let _ = write!(svg, "<text x=\"{place:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>", base + 16.0);
        }
        let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 5.0);
        let _ = write!(svg, "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{}</text>", escape(&self.x));
    }

    /// The name of a limit stands where lines are not. Of two limits at the left, where scores have not moved yet: that of
    /// the upper one below its line, that of the lower one above, and the other way round where there is no room between
    /// them. That of a lone limit at the right, on the side that no line ends on.
    fn draw_limits(&self, svg: &mut String) {
        let lone = self.limits.len() == 1;
        let ends_above = |limit: &Limit| self.series.iter().filter_map(|s| s.points.last()).any(|p| p.1 > limit.y);
        for (index, limit) in self.limits.iter().enumerate().filter(|(_, limit)| limit.y.is_finite()) {
            let others = || self.limits.iter().enumerate().filter(|(other, _)| *other != index);
            let is_lower = others().any(|(other, o)| (o.y, index) > (limit.y, other));
            let crowded = others().any(|(_, o)| (o.y - limit.y).abs() < 0.18);
            let below = if lone { ends_above(limit) } else { is_lower == crowded };
            let (at, anchor) = if lone { (WIDTH - RIGHT - 2.0, "end") } else { (LEFT + 4.0, "start") };
            let y = at_y(limit.y);
            let _ = write!(
                svg,
                "<line class=\"limit series-{style}\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                 <text class=\"limit series-{style}\" x=\"{at}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
                WIDTH - RIGHT,
                if below { y + 13.0 } else { y - 5.0 },
                escape(&limit.name),
                style = limit.style % STYLES,
            );
        }
    }
}

fn draw_series(svg: &mut String, axis: &Axis, series: &Series) {
    let place = |&(x, y): &(f64, f64)| axis.place(x).filter(|_| y.is_finite()).map(|place| (place, at_y(y), x, y));
    let placed: Vec<(f64, f64, f64, f64)> = series.points.iter().filter_map(place).collect();
    let points: Vec<String> = placed.iter().map(|(px, py, ..)| format!("{px:.1},{py:.1}")).collect();
    let (style, thin) = (series.style % STYLES, if series.thin { " thin" } else { "" });
    let _ = write!(svg, "<polyline class=\"series-{style}{thin}\" points=\"{}\"/>", points.join(" "));
    if series.thin || placed.len() > MOST_MARKS {
        return;
    }
    for (px, py, x, y) in placed {
        let (name, at) = (escape(&series.name), label(x));
        let _ = write!(
            svg,
            "<circle class=\"series-{style}\" cx=\"{px:.1}\" cy=\"{py:.1}\" r=\"2.6\"><title>{name} at {at}: {:.1}%</title></circle>",
            y * 100.0
        );
    }
}

/// The charts side by side, with one legend above them where they all share it, and one under each otherwise.
pub(super) fn charts_to_html(charts: &[Chart]) -> String {
    let legends: Vec<String> = charts.iter().map(|chart| legend(&chart.series)).collect();
    let shared = legends.windows(2).all(|pair| pair[0] == pair[1]);
    let mut html = String::new();
    if let (true, Some(legend)) = (shared, legends.first()) {
        html += legend;
    }
    html += "<div class=\"charts\">";
    for (chart, legend) in charts.iter().zip(&legends) {
        let figure = chart.to_html();
        match shared {
            true => html += &figure,
            false => html += &figure.replacen("</svg>", &format!("</svg>{legend}"), 1),
        }
    }
    html + "</div>\n"
}

fn legend(series: &[Series]) -> String {
    let mut entries: Vec<(usize, &str)> = Vec::new();
    for one in series {
        let entry = (one.style % STYLES, one.name.as_str());
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    let entry = |(style, name): &(usize, &str)| {
        format!(
            "<span><svg viewBox=\"0 0 28 8\" aria-hidden=\"true\"><polyline class=\"series-{style}\" points=\"0,4 28,4\"/></svg>{}</span> ",
            escape(name)
        )
    };
    format!("<p class=\"legend\">{}</p>", entries.iter().map(entry).collect::<String>())
}

/// Text for HTML. Characters that HTML cannot hold, and those that turn the direction of what follows, are made visible.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(character),
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                safe.push('\u{fffd}');
            }
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(log: bool, points: Vec<(f64, f64)>) -> Chart {
        Chart { log, series: vec![Series::new("a", 0, points)], ..Chart::default() }
    }

    #[test]
    fn ticks_are_round_and_few() {
        let ticks = |last| Axis { log: false, first: 0.0, last }.ticks();
        assert_eq!(ticks(200.0), [0.0, 50.0, 100.0, 150.0, 200.0]);
        assert_eq!(ticks(600.0), [0.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0]);
        assert_eq!(ticks(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
    }

    #[test]
    fn a_logarithmic_axis_runs_over_whole_decades_and_leaves_zero_out() {
        let chart = chart(true, vec![(0.0, 0.1), (3e9, 0.2), (2e12, 0.3)]);
        let axis = Axis::of(&chart);
        assert_eq!((axis.first.round(), axis.last.round()), (1e9, 1e13));
        assert_eq!(axis.ticks().len(), 5);
        assert_eq!(axis.place(0.0), None);
        assert!((axis.place(1e11).unwrap() - (LEFT + (WIDTH - LEFT - RIGHT) / 2.0)).abs() < 1e-6, "half way");
        assert_eq!(chart.to_html().matches("<circle").count(), 2);
    }

    #[test]
    fn charts_without_a_drawable_point_are_empty_and_not_broken() {
        for log in [false, true] {
            for points in [vec![], vec![(0.0, f64::NAN)], vec![(f64::INFINITY, 0.5)], vec![(0.0, 0.5)]] {
                let html = chart(log, points).to_html();
                assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
            }
        }
    }

    #[test]
    fn a_staircase_keeps_each_value_until_the_next() {
        let steps = Series::staircase("a", 0, &[(0.0, 0.1), (2.0, 0.5)], 5.0);
        assert_eq!(steps.points, [(0.0, 0.1), (2.0, 0.1), (2.0, 0.5), (5.0, 0.5)]);
        assert_eq!(Series::staircase("a", 0, &[], 5.0).points, []);
    }

    #[test]
    fn names_of_limits_never_share_a_place() {
        let limit = |y| Limit { name: "x".into(), style: 0, y };
        for (a, b) in [(0.4, 0.9), (0.5, 0.5), (0.45, 0.5), (0.95, 0.97), (0.02, 0.05)] {
            let html = Chart { limits: vec![limit(a), limit(b)], ..Chart::default() }.to_html();
            let place = |part: &str| part.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
            let places: Vec<f64> = html.split("<text class=\"limit").skip(1).map(place).collect();
            assert!((places[0] - places[1]).abs() >= 11.0, "{a} {b}: {places:?}");
        }
    }

    #[test]
    fn a_legend_that_all_charts_share_is_written_once() {
        let two = |name: &str| {
            vec![chart(false, vec![]), Chart { series: vec![Series::new(name, 0, vec![])], ..chart(false, vec![]) }]
        };
        assert_eq!(charts_to_html(&two("a")).matches("class=\"legend\"").count(), 1);
        assert_eq!(charts_to_html(&two("b")).matches("class=\"legend\"").count(), 2);
    }

    #[test]
    fn names_cannot_leave_their_place() {
        let series = vec![Series::new("<script>\"", 0, vec![(0.0, 2.0), (4.0, f64::NAN)])];
        let html = Chart { title: "a & b".into(), x: "'x'".into(), series, ..Chart::default() };
        let html = charts_to_html(&[html]);
        assert!(html.contains("&lt;script&gt;&quot;") && html.contains("a &amp; b") && !html.contains("<script"));
        assert_eq!(escape("a\u{0}\u{202e}b\n"), "a\u{fffd}\u{fffd}b\n");
    }
}
