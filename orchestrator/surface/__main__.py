from orchestrator.surface.cli import main

main()
