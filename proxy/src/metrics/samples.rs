//! One scrape: families of samples, gathered first and then encoded by prometheus-client.

use std::collections::HashMap;
use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::encoding::{NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// Labels of a sample. Keys are fixed; values come from the configuration or from closed lists, never from the wire.
type Labels = Vec<(&'static str, String)>;

/// What a scrape gathers. A source calls [`Samples::counter`] and [`Samples::gauge`] once per series.
#[derive(Debug, Default)]
pub struct Samples {
    families: Vec<Family>,
    index: HashMap<&'static str, usize>,
}

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    series: Vec<(Labels, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Debug)]
enum Value {
    Counter(u64),
    CounterF(f64),
    Gauge(i64),
    Histogram { sum: f64, count: u64, buckets: Vec<(f64, u64)> },
}

impl Samples {
    /// A number that only grows. `name` is without the `_total` that the text format adds.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: u64,
    ) {
        self.add(name, help, Kind::Counter, labels, Value::Counter(value));
    }

    /// Like [`Samples::counter`], for what is not counted in whole units (seconds).
    pub fn counter_f64(&mut self, name: &'static str, help: &'static str, value: f64) {
        self.add(name, help, Kind::Counter, &[], Value::CounterF(value));
    }

    /// A number that goes up and down.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: i64,
    ) {
        self.add(name, help, Kind::Gauge, labels, Value::Gauge(value));
    }

    /// Announces a family that may have no series yet, so that its name is exported from the start.
    pub fn announce_counter(&mut self, name: &'static str, help: &'static str) {
        self.family(name, help, Kind::Counter);
    }

    pub(super) fn histogram(
        &mut self,
        (name, help): (&'static str, &'static str),
        sum: f64,
        count: u64,
        buckets: Vec<(f64, u64)>,
    ) {
        self.add(name, help, Kind::Histogram, &[], Value::Histogram { sum, count, buckets });
    }

    /// The OpenMetrics text, with its end mark.
    pub(super) fn into_text(self) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::with_capacity(16 * 1024);
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &registry);
        out
    }

    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: Kind,
        labels: &[(&'static str, &str)],
        value: Value,
    ) {
        let labels = labels.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        self.family(name, help, kind).series.push((labels, value));
    }

    /// All series of a name stand together, whoever adds them and when.
    fn family(&mut self, name: &'static str, help: &'static str, kind: Kind) -> &mut Family {
        let at = *self.index.entry(name).or_insert_with(|| {
            self.families.push(Family { name, help, kind, series: Vec::new() });
            self.families.len() - 1
        });
        debug_assert!(self.families[at].kind == kind, "{name} is two kinds of metric");
        &mut self.families[at]
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        for family in &self.families {
            let kind = match family.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
                Kind::Histogram => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (labels, value) in &family.series {
                if labels.is_empty() {
                    encode_value(&mut metric, value)?;
                } else {
                    encode_labelled(&mut metric, labels, value)?;
                }
            }
        }
        Ok(())
    }
}

fn encode_labelled(metric: &mut MetricEncoder, labels: &Labels, value: &Value) -> Result<(), Error> {
    encode_value(&mut metric.encode_family(labels)?, value)
}

fn encode_value(metric: &mut MetricEncoder, value: &Value) -> Result<(), Error> {
    match value {
        Value::Counter(v) => metric.encode_counter::<NoLabelSet, _, u64>(v, None),
        Value::CounterF(v) => metric.encode_counter::<NoLabelSet, _, u64>(v, None),
        Value::Gauge(v) => metric.encode_gauge(v),
        Value::Histogram { sum, count, buckets } => {
            metric.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_family_stand_together_and_values_are_escaped() {
        let mut samples = Samples::default();
        samples.counter("a", "first", &[("x", "1")], 3);
        samples.gauge("b", "second", &[], -2);
        samples.counter("a", "first", &[("x", "q\"\\\n")], 4);
        samples.announce_counter("c", "nothing yet");
        assert_eq!(
            samples.into_text(),
            "# HELP a first\n# TYPE a counter\na_total{x=\"1\"} 3\na_total{x=\"q\\\"\\\\\\n\"} 4\n\
             # HELP b second\n# TYPE b gauge\nb -2\n# HELP c nothing yet\n# TYPE c counter\n# EOF\n"
        );
    }
}
