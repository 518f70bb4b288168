//! Medians, spreads and the table. Layer 6.

use serde_json::{Value, json};

use crate::app::output;

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

    /// Adds every number of the program's own report: `<stage>_<quantile>_us`, shown in ms.
    pub fn add_lab(&mut self, lab: Option<&Value>) {
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
