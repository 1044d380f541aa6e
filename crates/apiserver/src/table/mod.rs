//! `meta.k8s.io/v1 Table`: what `kubectl get` prints.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    jsonpath,
    resources::{Columns, PrinterColumn, ResourceDef, meta},
};

mod columns;
mod pod;

/// The objects as a table with the resource's columns; `policy` is `includeObject` (None, Metadata, Object).
pub(crate) fn table(def: &ResourceDef, objects: &[Arc<Value>], policy: &str, metadata: &Value) -> Value {
    let now = jiff::Timestamp::now();
    let (definitions, cells): (Vec<Value>, Vec<Vec<Value>>) = match &def.columns {
        Columns::Builtin => {
            let layout = columns::layout(def);
            let definitions = layout.iter().map(|(name, priority)| builtin_column(name, *priority)).collect();
            (definitions, objects.iter().map(|object| columns::cells(def, object, now)).collect())
        }
        Columns::Custom(columns) => {
            let mut definitions = vec![builtin_column("Name", 0)];
            definitions.extend(columns.iter().map(custom_column));
            (definitions, objects.iter().map(|object| custom_cells(columns, object, now)).collect())
        }
    };
    let rows: Vec<Value> = objects
        .iter()
        .zip(cells)
        .map(|(object, cells)| {
            let mut row = json!({"cells": cells});
            match policy {
                "None" => {}
                "Object" => row["object"] = Value::clone(object),
                _ => {
                    row["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                        "metadata": object["metadata"]});
                }
            }
            row
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions, "rows": rows})
}

fn builtin_column(name: &str, priority: i64) -> Value {
    let format = if name == "Name" { "name" } else { "" };
    json!({"name": name, "type": "string", "format": format, "description": name, "priority": priority})
}

fn custom_column(column: &PrinterColumn) -> Value {
    json!({"name": column.name, "type": column.kind, "format": column.format, "description": column.description,
        "priority": column.priority})
}

fn custom_cells(columns: &[PrinterColumn], object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let mut cells = vec![json!(meta(object, "name"))];
    for column in columns {
        let found = jsonpath::select(object, &column.path);
        cells.push(match (column.kind.as_str(), found.as_slice()) {
            ("date", [Value::String(time), ..]) => json!(age_of(time, now)),
            ("date", _) => json!("<unknown>"),
            (_, []) => Value::Null,
            ("integer" | "number" | "boolean", [one, ..]) if !one.is_array() => Value::clone(one),
            (_, [Value::String(text)]) => json!(text),
            (_, [one]) => json!(one.to_string()),
            (_, many) => {
                let texts: Vec<String> =
                    many.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
                json!(texts.join(","))
            }
        });
    }
    cells
}

/// Time since `time`, or `<unknown>`.
pub(crate) fn age_of(time: &str, now: jiff::Timestamp) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => human_duration(now.as_second() - time.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// Seconds as `apimachinery/pkg/util/duration.HumanDuration` writes them.
pub(crate) fn human_duration(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    const YEAR: i64 = 365 * DAY;
    let two = |large: i64, large_unit: &str, small: i64, small_unit: &str| {
        if small == 0 {
            format!("{large}{large_unit}")
        } else {
            format!("{large}{large_unit}{small}{small_unit}")
        }
    };
    match seconds {
        i64::MIN..-1 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        1..120 => format!("{seconds}s"),
        120..600 => two(seconds / MINUTE, "m", seconds % MINUTE, "s"),
        600..10_800 => format!("{}m", seconds / MINUTE),
        10_800..28_800 => two(seconds / HOUR, "h", seconds % HOUR / MINUTE, "m"),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        172_800..691_200 => two(seconds / DAY, "d", seconds % DAY / HOUR, "h"),
        691_200..63_072_000 => format!("{}d", seconds / DAY),
        63_072_000..252_288_000 => two(seconds / YEAR, "y", seconds % YEAR / DAY, "d"),
        _ => format!("{}y", seconds / YEAR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (3 * 3600 + 60, "3h1m"),
            (9 * 3600 + 60, "9h"),
            (49 * 3600, "2d1h"),
            (9 * 86400, "9d"),
            (800 * 86400, "2y70d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
