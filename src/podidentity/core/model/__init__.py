"""What every decision is made from: identities, pods and targets as values, and the rules that match them."""
