//! Whether resources can be used, without using them: nothing is bound, and nobody is called.

use lateen_ir as ir;

use crate::compile::{self, Names};
use crate::tls::Secrets;
use crate::update::{Resource, ResourceKind};

/// Checks the resources of a bootstrap as an engine does that is to serve them: that every field is supported, and that certificates,
/// keys, authorities and lists are what they should be. Of the kinds it looks at secrets, clusters and listeners.
///
/// # Errors
/// Which resource can't be used, and why.
pub fn check(resources: &[Resource]) -> Result<(), String> {
    let (mut names, mut secrets) = (Names::default(), Secrets::new(false));
    // Secrets come first, as others refer to them.
    for kind in [ResourceKind::Secret, ResourceKind::Cluster, ResourceKind::Listener] {
        for one in resources.iter().filter(|one| one.body.type_url == kind.type_url()) {
            let bytes = &one.body.value;
            let checked = match kind {
                ResourceKind::Secret => secret(bytes, &mut secrets),
                ResourceKind::Cluster => cluster(bytes, &secrets),
                ResourceKind::Listener => listener(bytes, &mut names, &secrets),
                ResourceKind::Endpoints | ResourceKind::Routes => Ok(()),
            };
            checked.map_err(|reason| format!("{kind} {}: {reason}", one.name))?;
        }
    }
    Ok(())
}

fn secret(bytes: &[u8], secrets: &mut Secrets) -> Result<(), String> {
    secrets.set(ir::Secret::from_bytes(bytes).map_err(|error| error.to_string())?)
}

fn cluster(bytes: &[u8], secrets: &Secrets) -> Result<(), String> {
    let cluster = compile::read_cluster(bytes)?;
    if let ir::Discovery::Static(endpoints) = &cluster.discovery
        && let Some(reason) = compile::unsupported_endpoints(&cluster, endpoints)
    {
        return Err(reason);
    }
    compile::transports(&cluster, secrets).map(drop)
}

fn listener(bytes: &[u8], names: &mut Names, secrets: &Secrets) -> Result<(), String> {
    let (listener, message) = compile::read_listener(bytes)?;
    compile::listener(listener, message, None, names, secrets).map(drop)
}
