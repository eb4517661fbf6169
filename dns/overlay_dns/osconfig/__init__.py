"""The system's resolver configuration: what is changed is written down first, and put back whatever happened since."""
