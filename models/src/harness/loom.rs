//! Every execution: unbounded, and bounded in both orders of the roles.

use std::sync::{Arc, Mutex};

use uaio_core::sync::timeline;

use super::{
    Make, Model,
    failure::{self, Roles},
    lock, orders,
    report::Explored,
    run_once, sound,
};

pub(super) const NAME: &str = "loom";

/// One of the explorations of a model.
#[derive(Clone)]
pub(super) struct Place {
    bound: Option<usize>,
    /// Of spawning the roles; as they are written if it is empty.
    order: Vec<usize>,
}

impl Place {
    /// The one that `UAIO_ORDER` and `UAIO_BOUND` name.
    fn to_replay() -> Option<Self> {
        let number = |n: &str| n.parse().expect("a number");
        let order = std::env::var("UAIO_ORDER").ok()?;
        let bound = std::env::var("UAIO_BOUND").unwrap_or_else(|_| "unbounded".into());
        Some(Self {
            bound: (bound != "unbounded").then(|| number(&bound)),
            order: order.split(',').map(number).collect(),
        })
    }

    /// The order in which so many roles are spawned.
    fn order(&self, roles: usize) -> Vec<usize> {
        match self.order[..] {
            [] => (0..roles).collect(),
            ref order => order.to_vec(),
        }
    }

    pub(super) fn describe(&self, roles: usize) -> String {
        format!("{}, spawn order {:?}", limit(self.bound), self.order(roles))
    }

    /// The roles as they are spawned.
    pub(super) fn in_order(&self, roles: &[&'static str]) -> Vec<&'static str> {
        let order = self.order(roles.len());
        order
            .iter()
            .filter_map(|i| roles.get(*i).copied())
            .collect()
    }

    /// With this only it is run.
    pub(super) fn environment(&self, roles: usize) -> String {
        let order: Vec<_> = self.order(roles).iter().map(ToString::to_string).collect();
        let bound = self.bound.map_or("unbounded".into(), |n| n.to_string());
        format!("UAIO_ORDER={} UAIO_BOUND={bound} ", order.join(","))
    }
}

fn limit(bound: Option<usize>) -> String {
    bound.map_or("unbounded".into(), |n| format!("bound {n}"))
}

/// No model needs that many executions in one order; one that does has to be
/// made smaller, or bounded. With the patch there are more, in one order.
fn most_executions() -> u64 {
    if sound() { 2_000_000 } else { 100_000 }
}
const MOST_BRANCHES: usize = 20_000;

/// How many executions there are.
fn explore(place: Place, make: &Make) -> u64 {
    failure::reached_place(place.clone());
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = place.bound;
    builder.max_branches = MOST_BRANCHES;
    // Whatever the environment says: a cut would go unnoticed.
    builder.max_permutations = None;
    builder.max_duration = None;
    let executions = Arc::new(Mutex::new(0));
    let (make, count) = (Arc::clone(make), Arc::clone(&executions));
    builder.check(move || {
        timeline::begin();
        let nth = {
            let mut count = lock(&count);
            *count += 1;
            *count
        };
        let most = most_executions();
        assert!(nth <= most, "not done after {most} executions");
        run_once(make(), &place.order);
    });
    *lock(&executions)
}

impl Model {
    pub(super) fn run(self, _: &str, roles: &Roles, make: Make) -> Option<Explored> {
        if let Some(place) = Place::to_replay() {
            explore(place, &make);
            return None;
        }
        let bounds: &[Option<usize>] = match self.bound() {
            None if sound() => &[None],
            None => &[None, Some(3)],
            Some(bound) => &[Some(bound.preemptions)],
        };
        let mut executions = Vec::new();
        let mut most = 0;
        for bound in bounds {
            // The roles are known once the scenario was made inside a model.
            let mut all = vec![Vec::new()];
            let mut done = 0;
            let mut total = 0;
            while let Some(order) = all.get(done).cloned() {
                let n = explore(
                    Place {
                        bound: *bound,
                        order,
                    },
                    &make,
                );
                most = most.max(n);
                total += n;
                if done == 0 && bound.is_some() && !sound() {
                    // The first of them is the order as written: done.
                    all = orders(roles.get().expect("it was made"));
                }
                done += 1;
            }
            executions.push(format!("{} {total} in {done} orders", limit(*bound)));
        }
        Some(Explored {
            executions,
            most,
            seed: None,
        })
    }
}
