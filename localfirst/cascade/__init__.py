"""Who answers: plan, run, classify, health, quota, contract, escalate."""
