//! The options with which any mutating command is repeated or fenced.

use clap::Args;
use quarry_proto::v1::Mutation;

/// How a mutating call is repeated and fenced; see `Mutation` in the contract.
#[derive(Debug, Args)]
#[command(next_help_heading = "Repeating and fencing")]
pub struct MutationArgs {
    /// A name for this call: the same call under the same name within 24 hours is answered as the first time
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    request_id: Option<String>,

    /// Refuse unless the object's generation is this one
    #[arg(long, value_name = "NUMBER", hide_short_help = true)]
    if_generation: Option<u64>,
}

impl From<MutationArgs> for Option<Mutation> {
    fn from(args: MutationArgs) -> Self {
        if args.request_id.is_none() && args.if_generation.is_none() {
            return None;
        }
        Some(Mutation {
            request_id: args.request_id.unwrap_or_default(),
            if_generation: args.if_generation.unwrap_or_default(),
        })
    }
}
