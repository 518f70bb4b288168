//! Medians, spreads and the table. Layer 7.

use serde_json::{Value, json};

use super::MIB;
use crate::app::output;
use crate::base::Histogram;

/// One measured quantity: a value a round, `None` where it does not exist.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Name in the JSON.
    pub name: String,
    /// Name in the table.
    pub label: String,
    /// Digits behind the point in the table.
    pub digits: usize,
    pub values: Vec<f64>,
}

impl Figure {
    /// The middle value.
    pub fn median(&self) -> Option<f64> {
        median(&self.values)
    }
}

/// The middle value; the mean of the two middle ones of an even number.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = sorted.get(middle).copied()?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted.get(middle - 1).map(|lower| (lower + upper) / 2.0)
}

/// What a round cost the program under test.
pub struct Costs {
    /// The round's length.
    pub seconds: f64,
    /// Payload moved in both directions.
    pub moved_gib: f64,
    pub cpu_s: f64,
    pub main_thread_cpu_s: f64,
    /// Share of its cores that was not idle, whoever used it; 1 is one core.
    pub busy: f64,
    pub peak_bytes: u64,
}

/// What a round cost the load, and what the machine was like meanwhile.
pub struct Surroundings {
    pub idle_thread_late: Histogram,
    pub load_cpu_s: f64,
}

/// All figures of a run, in the order of the table.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds one round's value.
    pub fn add(&mut self, name: &str, label: &str, digits: usize, value: Option<f64>) {
        let Some(value) = value.filter(|value| value.is_finite()) else {
            return;
        };
        match self.0.iter_mut().find(|figure| figure.name == name) {
            Some(figure) => figure.values.push(value),
            None => self.0.push(Figure {
                name: name.to_owned(),
                label: label.to_owned(),
                digits,
                values: vec![value],
            }),
        }
    }

    /// Adds what the round cost.
    pub fn add_costs(&mut self, costs: &Costs) {
        let share = |cpu_s: f64| Some(cpu_s / costs.seconds * 100.0);
        let each = |cpu_s: f64| Some(cpu_s / costs.moved_gib);
        let main = costs.main_thread_cpu_s;
        let others = costs.busy - costs.cpu_s / costs.seconds;
        let anonymous_mib = costs.peak_bytes as f64 / MIB;
        let all = [
            ("cpu_s_per_gib", "CPU s/GiB", 3, each(costs.cpu_s)),
            ("cpu_percent", "CPU, % of a core", 1, share(costs.cpu_s)),
            (
                "main_thread_percent",
                "main thread, % of a core",
                1,
                share(main),
            ),
            (
                "main_thread_cpu_s_per_gib",
                "main thread, CPU s/GiB",
                3,
                each(main),
            ),
            (
                "core_busy_percent",
                "its cores busy, %",
                1,
                Some(costs.busy * 100.0),
            ),
            (
                "others_percent",
                "others on its cores, %",
                1,
                Some(others.max(0.0) * 100.0),
            ),
            (
                "anonymous_mib",
                "peak anonymous MiB",
                1,
                Some(anonymous_mib),
            ),
        ];
        for (name, label, digits, value) in all {
            self.add(name, label, digits, value);
        }
    }

    /// Adds what else was seen, the program's own report among it.
    pub fn add_surroundings(&mut self, seen: &Surroundings, lab: Option<&Value>, costs: &Costs) {
        let late = seen.idle_thread_late.quantile(0.99);
        let late_ms = late.map(|us| us as f64 / 1e3);
        self.add(
            "idle_thread_late_p99_ms",
            "idle thread late p99 ms",
            2,
            late_ms,
        );
        self.add_lab(lab);
        let share = seen.load_cpu_s / costs.seconds * 100.0;
        self.add("load_cpu_percent", "load, % of a core", 1, Some(share));
        let each = seen.load_cpu_s / costs.moved_gib;
        self.add("load_cpu_s_per_gib", "load, CPU s/GiB", 3, Some(each));
    }

    /// Adds quantiles of times, in ms.
    pub fn add_quantiles(&mut self, times: &Histogram, what: &str) {
        for (name, label, q) in [
            ("p50", "p50", 0.5),
            ("p99", "p99", 0.99),
            ("p999", "p99.9", 0.999),
        ] {
            let ms = times.quantile(q).map(|us| us as f64 / 1e3);
            self.add(
                &format!("latency_{name}_ms"),
                &format!("{what} {label} ms"),
                2,
                ms,
            );
        }
    }

    /// Adds every number of the program's own report: `<stage>_<quantile>_us`, shown in ms.
    fn add_lab(&mut self, lab: Option<&Value>) {
        for (name, value) in lab.and_then(Value::as_object).into_iter().flatten() {
            let Some((stage, quantile)) = name
                .strip_suffix("_us")
                .and_then(|name| name.rsplit_once('_'))
            else {
                continue;
            };
            let stage = match stage {
                "loop_lag" => "event loop late",
                "request_queued" => "request → taken",
                "request_read" => "taken → read",
                "request_sent" => "read → sent",
                other => other,
            };
            let quantile = quantile.replace("p999", "p99.9");
            let name = name.replace("_us", "_ms");
            let ms = value.as_f64().map(|us| us / 1e3);
            self.add(&name, &format!("{stage} {quantile} ms"), 2, ms);
        }
    }

    /// The figure of that name.
    #[cfg(test)]
    fn get(&self, name: &str) -> Option<&Figure> {
        self.0.iter().find(|figure| figure.name == name)
    }

    /// Median, lowest, highest and all values of each.
    pub fn json(&self) -> Value {
        let mut all = serde_json::Map::new();
        for figure in &self.0 {
            let (low, high) = spread(&figure.values);
            let rounded: Vec<f64> = figure.values.iter().copied().map(round).collect();
            let entry = json!({
                "median": figure.median().map(round), "low": round(low), "high": round(high), "rounds": rounded,
            });
            all.insert(figure.name.clone(), entry);
        }
        Value::Object(all)
    }

    /// Prints the table.
    pub fn print(&self) {
        let width = self
            .0
            .iter()
            .map(|figure| figure.label.chars().count())
            .max();
        let width = width.unwrap_or(0).max(8);
        output::stdout_line(&format!("{:width$} {:>12}   spread", "", "median"));
        for figure in &self.0 {
            let (low, high) = spread(&figure.values);
            let text = |value: f64| format!("{value:.*}", figure.digits);
            let median = figure.median().map(text).unwrap_or_default();
            let pad = width - figure.label.chars().count();
            output::stdout_line(&format!(
                "{}{} {median:>12}   {}–{}",
                figure.label,
                " ".repeat(pad),
                text(low),
                text(high),
            ));
        }
    }
}

fn spread(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (low, high)
}

/// Five significant digits: more is noise.
fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powi(4 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_value_or_the_mean_of_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn values_that_do_not_exist_make_no_figure() {
        let mut figures = Figures::default();
        figures.add("a", "A", 0, Some(f64::NAN));
        figures.add("a", "A", 0, None);
        assert!(figures.get("a").is_none());
        figures.add("a", "A", 0, Some(12_345.678));
        assert_eq!(figures.json()["a"]["median"], 12_346.0);
    }
}
