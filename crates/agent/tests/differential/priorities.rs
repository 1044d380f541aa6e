//! Retries that prefer priorities not tried yet (`retry_priority`).

use serde_json::{Value, json};

use crate::duo::{Backend, Duo, KINDS, localities, route};

fn policy(update_frequency: u32, num_retries: u32) -> Value {
    json!({ "retry_policy": {
        "retry_on": "5xx", "num_retries": num_retries,
        "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" },
        "retry_priority": { "name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": update_frequency,
        } },
    } })
}

/// A cluster of one backend a priority.
fn prioritized(name: &str, backends: &[&Backend]) -> Value {
    let of = |(priority, backend): (usize, &&Backend)| json!({ "priority": priority, "lb_endpoints": [backend.endpoint(json!({}))] });
    localities(
        name,
        backends.iter().enumerate().map(of).collect(),
        json!({ "circuit_breakers": { "thresholds": [{ "max_retries": 100 }] } }),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_go_to_priorities_that_were_not_tried() {
    let backends = Backend::several(3).await;
    let all: Vec<&Backend> = backends.iter().collect();
    // Unhealthy by configuration: never tried but where everything else is.
    let mut gap = prioritized("gap", &all);
    gap["load_assignment"]["endpoints"][1]["lb_endpoints"][0]["health_status"] = "UNHEALTHY".into();
    let clusters = [
        prioritized("each", &all),
        prioritized("second", &all),
        gap,
        prioritized("alone", &all[..1]),
        prioritized("default", &all),
    ];
    let mut plain = policy(1, 5);
    plain["retry_policy"].as_object_mut().unwrap().remove("retry_priority");
    let routes = json!([
        route("each", policy(1, 5)),
        route("second", policy(2, 6)),
        route("gap", policy(1, 5)),
        route("alone", policy(1, 2)),
        route("default", plain),
    ]);
    let duo = Duo::start(routes, &clusters, &[]).await;
    // How often each priority is tried when none of them answers well.
    for (name, tries) in [
        ("each", [2, 2, 2]),
        ("second", [3, 2, 2]),
        ("gap", [3, 0, 3]),
        ("alone", [3, 0, 0]),
        ("default", [6, 0, 0]),
    ] {
        for (kind, engine) in KINDS.iter().enumerate() {
            backends.iter().for_each(|backend| backend.answers(503));
            let before: Vec<u64> = backends.iter().map(Backend::hits).collect();
            let reply = duo.get(kind, &format!("/{name}"), &[]).await;
            let met: Vec<u64> =
                backends.iter().zip(before).map(|(backend, before)| backend.hits() - before).collect();
            assert_eq!((reply.status, &met[..]), (503, &tries[..]), "{engine} {name}");
        }
    }
    backends[2].answers(200);
    for reply in duo.both("/each", &[]).await {
        assert_eq!((reply.status, &*reply.body), (200, "2"), "the third priority answers at last");
    }
}
