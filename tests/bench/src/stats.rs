//! Figures of figures. No IO.

use serde::{Deserialize, Serialize};

/// What a handful of repeats gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The least.
    pub least: f64,
    /// The median.
    pub median: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of repeats; `None` of none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        Some(Self { least: quantile(&values, 0.0)?, median: middle(&values)?, most: quantile(&values, 1.0)? })
    }
}

/// The median: the mean of the two in the middle where there are two.
fn middle(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let upper = *sorted.get(half)?;
    if sorted.len() % 2 == 1 { Some(upper) } else { Some(f64::midpoint(sorted[half - 1], upper)) }
}

/// The value below or at which that share of all is (the nearest rank); `None` of none.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share.clamp(0.0, 1.0) * real(sorted.len())).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most the count of values")]
    let index = (rank as usize).saturating_sub(1);
    sorted.get(index).copied()
}

/// The exponent with which `y` grows with `x`: the slope of the line that fits their logarithms best. `None` of fewer than two.
#[must_use]
pub fn exponent(points: &[(f64, f64)]) -> Option<f64> {
    let count = real(points.len());
    let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (middle_x, middle_y) = (mean(|point| point.0), mean(|point| point.1));
    let along: f64 = logs.iter().map(|(x, y)| (x - middle_x) * (y - middle_y)).sum();
    let across: f64 = logs.iter().map(|(x, _)| (x - middle_x).powi(2)).sum();
    (across > 0.0).then(|| along / across)
}

/// A count to reckon with.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
pub fn real(count: usize) -> f64 {
    count as f64
}

/// Bytes in MiB.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "no size here comes near 2^52")]
pub fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / 1_048_576.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_seen() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (share, value) in [(0.0, 1.0), (0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (2.0, 100.0)] {
            assert_eq!(quantile(&values, share), Some(value));
        }
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn a_spread_has_both_ends() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { least: 1.0, median: 2.0, most: 3.0 }));
        assert_eq!(Spread::of([3.0, 1.0]).map(|spread| spread.median), Some(2.0));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn exponents_are_found() {
        let growing = |power: f64| [1e3, 1e4, 5e4].map(|x: f64| (x, 3.0 * x.powf(power)));
        for power in [0.0, 0.5, 1.0, 1.2] {
            assert!((exponent(&growing(power)).unwrap() - power).abs() < 1e-9);
        }
        assert_eq!(exponent(&[(1.0, 1.0)]), None);
        assert_eq!(exponent(&[]), None);
    }
}
