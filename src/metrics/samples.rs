//! Parses the text format, for commands that answer in JSON. Strict: any deviation from the format is an error.

use std::collections::BTreeMap;

use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// The number of the line, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {0} is not in the Prometheus text format")]
pub struct BadLine(pub usize);

pub fn parse(text: &str) -> Result<Vec<Sample>, BadLine> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    lines.map(|(number, line)| sample(line).ok_or(BadLine(number + 1))).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name, ":") {
        return None;
    }
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (label, value) = rest.split_once("=\"")?;
            let (value, after) = quoted(value)?;
            if !is_name(label, "") || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            rest = match after.strip_prefix(',') {
                Some(after) => after,
                None if after.starts_with('}') => after,
                None => return None,
            };
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.strip_prefix(' ')?;
    // Rust also parses "inf" and "infinity", which the format does not have.
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number if number.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte)) => {
            number.parse().ok()?
        }
        _ => return None,
    };
    Some(Sample { name: name.into(), labels, value })
}

/// The unescaped text before the closing quote, and the rest after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    loop {
        match characters.next()? {
            (place, '"') => return Some((value, text.get(place + 1..)?)),
            (_, '\\') => value.push(match characters.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            (_, plain) => value.push(plain),
        }
    }
}

fn is_name(text: &str, besides: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_' || besides.contains(c);
    !text.is_empty() && !text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP a b\n# TYPE a counter\na_total{x=\"1\",y=\"a\\\"b\\\\c\\nd}, e\"} 3\n\nb 1.5e3\nc{le=\"+Inf\"} +Inf\n";
        let samples = parse(text).unwrap();
        assert_eq!(samples.len(), 3);
        assert_eq!((samples[0].name.as_str(), samples[0].value), ("a_total", 3.0));
        assert_eq!(samples[0].labels["y"], "a\"b\\c\nd}, e");
        assert_eq!((samples[1].value, samples[2].value), (1500.0, f64::INFINITY));
    }

    #[test]
    fn what_is_no_sample_is_refused_with_its_line() {
        for bad in [
            "a",
            "a ",
            "1a 1",
            "a{} x",
            "a{b} 1",
            "a{b=\"} 1",
            "a{b=\"\\x\"} 1",
            "a{b=\"1\"c=\"2\"} 1",
            "a{b=\"1\"}1",
            "a{b=\"1\",b=\"2\"} 1",
            "a inf",
            "a nan",
            "a 1 2 3",
            "{} 1",
            "a{b-c=\"1\"} 1",
            "a\u{e9} 1",
            "a  1",
        ] {
            assert_eq!(parse(&format!("fine 1\n{bad}\n")), Err(BadLine(2)), "{bad}");
        }
    }
}
