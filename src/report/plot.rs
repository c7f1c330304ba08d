//! Line charts: works out where everything lies. `templates/charts.html` writes it as SVG, coloured by the classes of the
//! page it stands in. Lines differ in their dashes as well as in colour.

use serde::Serialize;

use super::units::{label, percent, whole_percent};

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
        if !x.is_finite() || (self.log && x <= 0.0) {
            return None;
        }
        let share = if self.log { (x / self.first).log10() / (self.last / self.first).log10() } else { x / self.last };
        Some(LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)).filter(|place| place.is_finite())
    }

    /// Up to six round numbers.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let first = self.first.log10().round() as i32;
            let last = self.last.log10().round() as i32;
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

/// A chart whose every mark has its place, in the units of the `viewBox`.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Drawing {
    title: String,
    note: String,
    width: f64,
    height: f64,
    lines: Vec<Line>,
    texts: Vec<Text>,
    curves: Vec<Curve>,
    /// The chart's own legend, where the gallery has none for all.
    legend: Option<Legend>,
}

/// A horizontal line.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    class: String,
    left: f64,
    right: f64,
    y: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Text {
    /// Empty for none.
    class: String,
    x: f64,
    y: f64,
    /// `start`, `middle` or `end`, as SVG names them.
    anchor: &'static str,
    text: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Curve {
    class: String,
    /// `x,y` pairs.
    points: String,
    marks: Vec<Mark>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Mark {
    x: f64,
    y: f64,
    /// The text that a pointer on it shows.
    says: String,
}

/// The name of each kind of line, once.
type Legend = Vec<LegendEntry>;

#[derive(Debug, PartialEq, Serialize)]
struct LegendEntry {
    style: usize,
    name: String,
}

/// Charts side by side.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Gallery {
    /// One legend above them where they all share it; otherwise each has its own.
    legend: Option<Legend>,
    charts: Vec<Drawing>,
}

impl Gallery {
    pub(super) fn of(charts: &[Chart]) -> Self {
        let mut drawings: Vec<Drawing> = charts.iter().map(Chart::draw).collect();
        let shared = drawings.windows(2).all(|pair| pair[0].legend == pair[1].legend);
        let legend = if shared { drawings.first_mut().and_then(|first| first.legend.take()) } else { None };
        if shared {
            drawings.iter_mut().for_each(|drawing| drawing.legend = None);
        }
        Self { legend, charts: drawings }
    }
}

/// A tenth of a unit is finer than a screen shows.
fn rounded(place: f64) -> f64 {
    (10.0 * place).round() / 10.0
}

impl Chart {
    fn draw(&self) -> Drawing {
        let axis = Axis::of(self);
        let mut drawing = Drawing {
            title: self.title.clone(),
            note: self.note.clone(),
            width: WIDTH,
            height: HEIGHT,
            lines: Vec::new(),
            texts: Vec::new(),
            curves: self.series.iter().map(|series| curve(&axis, series)).collect(),
            legend: Some(legend(&self.series)),
        };
        self.draw_axes(&mut drawing, &axis);
        self.draw_limits(&mut drawing);
        drawing
    }

    fn draw_axes(&self, drawing: &mut Drawing, axis: &Axis) {
        let mut write = |x: f64, y: f64, anchor, text| {
            drawing.texts.push(Text { class: String::new(), x: rounded(x), y: rounded(y), anchor, text });
        };
        for y in [0.0, 0.25, 0.5, 0.75, 1.0] {
            drawing.lines.push(Line { class: "grid".into(), left: LEFT, right: WIDTH - RIGHT, y: rounded(at_y(y)) });
            write(LEFT - 6.0, at_y(y) + 4.0, "end", whole_percent(y));
        }
        for x in axis.ticks() {
            let Some(place) = axis.place(x) else { continue };
            write(place, HEIGHT - BOTTOM + 16.0, "middle", label(x));
        }
        write((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 5.0, "middle", self.x.clone());
    }

    /// The name of a limit stands where lines are not. Two limits have their names at the left, where scores have not moved
    /// yet: the upper limit's name below its line, the lower limit's above, and the other way round where there is no room
    /// between them. A lone limit has its name at the right, on the side that no line ends on.
    fn draw_limits(&self, drawing: &mut Drawing) {
        let lone = self.limits.len() == 1;
        let ends_above = |limit: &Limit| self.series.iter().filter_map(|s| s.points.last()).any(|p| p.1 > limit.y);
        for (index, limit) in self.limits.iter().enumerate().filter(|(_, limit)| limit.y.is_finite()) {
            let others = || self.limits.iter().enumerate().filter(|(other, _)| *other != index);
            let is_lower = others().any(|(other, o)| (o.y, index) > (limit.y, other));
            let crowded = others().any(|(_, o)| (o.y - limit.y).abs() < 0.18);
            let below = if lone { ends_above(limit) } else { is_lower == crowded };
            let (x, anchor) = if lone { (WIDTH - RIGHT - 2.0, "end") } else { (LEFT + 4.0, "start") };
            let line = at_y(limit.y);
            let class = format!("limit series-{}", limit.style % STYLES);
            drawing.lines.push(Line { class: class.clone(), left: LEFT, right: WIDTH - RIGHT, y: rounded(line) });
            let y = rounded(if below { line + 13.0 } else { line - 5.0 });
            drawing.texts.push(Text { class, x, y, anchor, text: limit.name.clone() });
        }
    }
}

/// A line of a chart, with a mark at each point where they do not run together.
fn curve(axis: &Axis, series: &Series) -> Curve {
    let mark = |&(x, y): &(f64, f64)| {
        let place = axis.place(x).filter(|_| y.is_finite())?;
        let says = format!("{} at {}: {}", series.name, label(x), percent(y));
        Some(Mark { x: rounded(place), y: rounded(at_y(y)), says })
    };
    let mut marks: Vec<Mark> = series.points.iter().filter_map(mark).collect();
    let points: Vec<String> = marks.iter().map(|mark| format!("{},{}", mark.x, mark.y)).collect();
    if series.thin || marks.len() > MOST_MARKS {
        marks.clear();
    }
    let thin = if series.thin { " thin" } else { "" };
    Curve { class: format!("series-{}{thin}", series.style % STYLES), points: points.join(" "), marks }
}

fn legend(series: &[Series]) -> Legend {
    let mut legend = Legend::new();
    for one in series {
        let entry = LegendEntry { style: one.style % STYLES, name: one.name.clone() };
        if !legend.contains(&entry) {
            legend.push(entry);
        }
    }
    legend
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
        assert_eq!(chart.draw().curves[0].marks.len(), 2);
    }

    #[test]
    fn charts_without_a_drawable_point_are_empty_and_not_broken() {
        for log in [false, true] {
            for points in [vec![], vec![(0.0, f64::NAN)], vec![(f64::INFINITY, 0.5)], vec![(0.0, 0.5)]] {
                let drawing = chart(log, points).draw();
                let placed = drawing.texts.iter().flat_map(|text| [text.x, text.y]).all(f64::is_finite);
                let points = &drawing.curves[0].points;
                assert!(placed && !points.contains("NaN") && !points.contains("inf"), "{drawing:?}");
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
            let drawing = Chart { limits: vec![limit(a), limit(b)], ..Chart::default() }.draw();
            let names = drawing.texts.iter().filter(|text| text.class.starts_with("limit"));
            let places: Vec<f64> = names.map(|text| text.y).collect();
            assert!((places[0] - places[1]).abs() >= 11.0, "{a} {b}: {places:?}");
        }
    }

    #[test]
    fn a_legend_that_all_charts_share_is_written_once() {
        let two = |name: &str| {
            vec![chart(false, vec![]), Chart { series: vec![Series::new(name, 0, vec![])], ..chart(false, vec![]) }]
        };
        let shared = Gallery::of(&two("a"));
        assert!(shared.legend.is_some() && shared.charts.iter().all(|chart| chart.legend.is_none()));
        let own = Gallery::of(&two("b"));
        assert!(own.legend.is_none() && own.charts.iter().all(|chart| chart.legend.is_some()));
        assert_eq!(Gallery::of(&[]), Gallery { legend: None, charts: vec![] });
    }
}
