"""The ledger: what each compiled kernel holds, computes and moves, beside the minimum."""
